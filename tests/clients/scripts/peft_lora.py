"""PEFT: a LoRA adapter on a fine-tuned model changes nothing before it is trained.

Then the adapter is trained, saved, loaded again and merged.
"""

import tempfile

import torch
from checks import call, numbers, run_checks
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

# These are DistilBERT's names of the query and value projections. PEFT knows those of BERT and RoBERTa,
# but has no default for DistilBERT.
TARGETS = {"distilbert": ["q_lin", "v_lin"]}


def load(check):
    tokenizer = AutoTokenizer.from_pretrained(check["folder"])
    plain = AutoModelForSequenceClassification.from_pretrained(check["folder"])
    model = get_peft_model(
        plain, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=TARGETS.get(plain.config.model_type))
    ).eval()

    def logits(which, given):
        with torch.no_grad():
            return which(**call(tokenizer, given, return_tensors="pt")).logits

    inputs = list(check["inputs"].values())
    untrained = {given["text"]: numbers(logits(model, given)) for given in inputs}
    train(model, tokenizer, inputs, check["task"])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(check["folder"]), folder
        ).eval()
    trained = [logits(model, given) for given in inputs]
    for name, other in (("loaded", again), ("merged", again.merge_and_unload())):
        worst = max(
            (logits(other, given) - expected).abs().max().item()
            for given, expected in zip(inputs, trained, strict=True)
        )
        if worst > 1e-4:
            raise ValueError(f"the adapter, {name}, differs from the trained one by {worst:.2g}")
    return lambda given: {"logits": untrained[given["text"]]}


def train(model, tokenizer, inputs, task):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=2e-3)
    losses = []
    model.train()
    for _ in range(20):
        batch = [
            model(**call(tokenizer, given, return_tensors="pt"), labels=label(i, task)).loss
            for i, given in enumerate(inputs)
        ]
        loss = torch.stack(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    if not losses[-1] < losses[0]:
        raise ValueError(f"the loss did not fall: {losses[0]:.3g}, {losses[-1]:.3g}")


def label(number, task):
    return torch.tensor([4.0 * (number % 2)]) if task == "regression" else torch.tensor([number % 2])


run_checks(load, ["peft", "transformers", "torch"])
