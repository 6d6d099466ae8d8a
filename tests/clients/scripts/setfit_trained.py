"""SetFit: compute sentence vectors, then train a classifier on them, save it and load it again."""

import tempfile

from checks import numbers, run_checks
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments

ROWS = [
    (f"The {word}. {rest}", i)
    for i, word in enumerate(("river", "house"))
    for rest in ("It is old.", "He saw it.", "They met there.", "So it was.")
]


def load(check):
    model = SetFitModel.from_pretrained(check["folder"], device="cpu")
    answers = {
        given["text"]: numbers(model.model_body.encode([given["text"]])[0]) for given in check["inputs"].values()
    }
    data = Dataset.from_dict({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, num_epochs=1, batch_size=8, report_to="none")
        Trainer(model=model, args=arguments, train_dataset=data).train()
        texts = [text for text, _ in ROWS]
        before = model.predict_proba(texts)
        model.save_pretrained(f"{folder}/saved")
        after = SetFitModel.from_pretrained(f"{folder}/saved", device="cpu").predict_proba(texts)
    if (before - after).abs().max() > 1e-6:
        raise ValueError("the saved model answers otherwise than the trained one")
    return lambda given: {"mean": answers[given["text"]]}


run_checks(load, ["setfit", "sentence-transformers", "transformers"])
