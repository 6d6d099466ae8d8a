"""The clients' inputs, and the answers that are expected: PyTorch's in fp32, and each quantized file's own.

How far a quantized file is from PyTorch is for the product's export to judge. Here the question is
whether a client makes of the file what the file's own runtime makes of it.

Token ids come from tokenizer.json itself, and the most tokens from the model's own config. The
clients then show what a folder's tokenizer_config.json adds or forgets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from ds_distill.exporters.format_table import FORMATS as PRODUCT_FORMATS
from tests.clients.compare import PYTORCH, QUANTIZED
from tests.clients.exports import Export

LONG = "She was born in a small village near the coast, and her father repaired clocks at the railway yards. " * 6
CLASSES = {
    "fill-mask": AutoModelForMaskedLM,
    "text-classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "feature-extraction": AutoModel,
}
MOST_ANSWER_TOKENS = 15  # the pipeline's limit
# From token ids and token type ids to a model's outputs, and to its last hidden states where they are known.
Run = Callable[[list[int], list[int]], tuple[list[torch.Tensor], torch.Tensor | None]]


def get_input_names(export: Export, mask: str) -> dict[str, dict[str, str]]:
    """Return the inputs by name: "text", and the second of two texts as "pair".

    Inputs called overlong have more tokens than the model has positions.
    """
    if export.task == "fill-mask":
        return {
            "short": {"text": f"The river rises in the {mask} north of the town."},
            "unicode": {"text": f"A {mask} of naïve café, 東京 & über-small words!"},
            "overlong": {"text": f"The river {mask} north of the town. {LONG}"},
        }
    if export.task == "question-answering":
        context = "The river. It rises in the hills north of the town"
        return {
            "short": {"text": "What is it?", "pair": context},
            "other": {"text": "What is it?", "pair": "The house. " + LONG[:60]},
            "overlong": {"text": "What is it?", "pair": f"{context}. {LONG}"},
        }
    if export.pairs:
        return {
            "alike": {"text": "The river. It rises in the hills", "pair": "The river. Water boils"},
            "different": {
                "text": "The house. Naïve café, 東京",
                "pair": "The house. For most of the year it is shallow",
            },
            "overlong": {"text": f"The river. {LONG}", "pair": f"The river. {LONG}"},
        }
    return {
        "short": {"text": "The river. It rises in the hills north of the town."},
        "other": {"text": "The house. Naïve café, 東京 & über-small words!"},
        "overlong": {"text": f"The house. {LONG}"},
    }


def compute_reference(export: Export, folder: Path, model_folder: Path) -> dict:
    """Return {"inputs": by name, "answers": by PYTORCH or the quantized format, then by name}.

    An input has the texts and, for clients without a tokenizer, "ids" and "type_ids". An answer has
    the views of `_views`. An answer to an overlong text also has "cut_last": the same for a client
    that cuts the token ids after [SEP] has been added at their end.

    Args:
        export: The export in `folder`.
        folder: The folder of its tokenizer.json.
        model_folder: The folder of its weights; for an encoder, that of the masked LM whose encoder
            it must equal.
    """
    config = AutoConfig.from_pretrained(model_folder)
    whole = export.task != "feature-extraction" or config.model_type == "distilbert"
    options = {} if whole else {"add_pooling_layer": False}
    model = CLASSES[export.task].from_pretrained(model_folder, use_safetensors=True, **options).float().eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    positions = _positions(config)
    mask = next(token for token in ("[MASK]", "<mask>") if tokenizer.token_to_id(token) is not None)
    masked, mask_id = export.task == "fill-mask", tokenizer.token_to_id(mask)
    inputs, cuts = get_input_names(export, mask), {}
    for name, given in inputs.items():
        tokenizer.enable_truncation(positions)
        cut = tokenizer.encode(given["text"], given.get("pair"))
        tokenizer.no_truncation()
        uncut = tokenizer.encode(given["text"], given.get("pair"))
        if ("overlong" in name) != (len(uncut.ids) > positions):
            raise AssertionError(f"{export.name}: the input {name} has {len(uncut.ids)} tokens of {positions}")
        given["ids"], given["type_ids"] = cut.ids, cut.type_ids if config.model_type == "bert" else []
        cuts[name] = {"": cut} | ({"cut_last": uncut} if len(uncut.ids) > positions else {})

    def answer(run: Run) -> dict[str, dict]:
        answers = {}
        for name, encodings in cuts.items():
            views = {}
            for key, encoding in encodings.items():
                ids, types = encoding.ids[:positions], encoding.type_ids[:positions]
                views[key] = _views(export, *run(ids, types), config.id2label, ids.index(mask_id) if masked else 0)
            answers[name] = views.pop("") | views
        return answers

    answers = {PYTORCH: answer(_torch_run(export, model))}
    if export.task == "question-answering":
        for name, given in inputs.items():
            answers[PYTORCH][name]["answer"] = _best_answer(model, tokenizer, given, positions)
    for form in QUANTIZED:
        if (folder / PRODUCT_FORMATS[form].file).is_file():
            answers[form] = answer(_file_run(export, folder, form))
    return {"inputs": inputs, "answers": answers}


def _torch_run(export: Export, model: PreTrainedModel) -> Run:
    def run(ids: list[int], type_ids: list[int]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        with torch.no_grad():
            outputs = model(**_tensors(ids, type_ids, model.config), output_hidden_states=True)
        last = outputs.hidden_states[-1]
        if export.task == "question-answering":
            return [outputs.start_logits, outputs.end_logits], last
        return [last if export.task == "feature-extraction" else outputs.logits], last

    return run


def _file_run(export: Export, folder: Path, form: str) -> Run:
    """Return a function that runs a quantized file in its own runtime, in this environment."""
    runner = PRODUCT_FORMATS[form].load(folder / PRODUCT_FORMATS[form].file)

    def run(ids: list[int], type_ids: list[int]) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        rows = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": type_ids}
        outputs = [torch.from_numpy(values) for values in runner({k: np.array([row]) for k, row in rows.items()})]
        return outputs, outputs[0] if export.task == "feature-extraction" else None

    return run


def _views(
    export: Export, outputs: list[torch.Tensor], last: torch.Tensor | None, names: dict[int, str], masked_at: int
) -> dict:
    """Return an answer in the forms that clients may give.

    "logits" has all of the model's outputs, flat; "scores" has what a pipeline reports, by its key;
    "mean" is the mean of the last hidden states.
    """
    views: dict = {"logits": [value for output in outputs for value in _flat(output)]}
    if export.task == "fill-mask":
        views["scores"] = dict(enumerate(_flat(outputs[0][0, masked_at].softmax(-1))))
    if export.task == "text-classification":
        views["scores"] = {names[label]: score for label, score in enumerate(_flat(outputs[0][0].softmax(-1)))}
    if export.task == "regression":
        views["scores"] = {names[0]: outputs[0].item()}
    if export.task in ("fill-mask", "feature-extraction") and last is not None:
        views["mean"] = _flat(last[0].mean(0))
    return views


def write_reference(export: Export, folder: Path, model_folder: Path, file: Path) -> dict:
    """Return the reference of an export, computed once and kept in `file`."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(compute_reference(export, folder, model_folder)), encoding="utf-8")
        partial.replace(file)
    return json.loads(file.read_text(encoding="utf-8"))


def _positions(config: PretrainedConfig) -> int:
    """Return how many tokens the model takes; RoBERTa's positions begin after the padding's id."""
    return config.max_position_embeddings - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)


def _tensors(ids: list[int], type_ids: list[int], config: PretrainedConfig) -> dict[str, torch.Tensor]:
    tensors = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    return tensors | ({"token_type_ids": torch.tensor([type_ids])} if config.model_type == "bert" else {})


def _flat(values: torch.Tensor) -> list[float]:
    return [float(value) for value in values.flatten()]


def _best_answer(model: PreTrainedModel, tokenizer: Tokenizer, given: dict[str, str], positions: int) -> str:
    """Return the likeliest answer as transformers' pipeline finds it.

    It reads windows that overlap by half, and answers in whole words of the context.
    """
    tokenizer.enable_truncation(positions, stride=positions // 2, strategy="only_second")
    first = tokenizer.encode(given["text"], given["pair"])
    best: tuple[float, str] = (-math.inf, "")
    for window in (first, *first.overflowing):
        with torch.no_grad():
            outputs = model(**_tensors(window.ids, window.type_ids, model.config))
        allowed = torch.tensor([sequence == 1 for sequence in window.sequence_ids])
        allowed[0] = True  # [CLS], which takes its share of the probability
        start, end = (
            logits[0].masked_fill(~allowed, -10000.0).softmax(-1)
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        start[0] = end[0] = 0.0
        scores = torch.triu(start[:, None] * end[None]).tril(MOST_ANSWER_TOKENS - 1)
        words = [window.token_to_word(position) for position in divmod(scores.argmax().item(), len(start))]
        spans = [window.word_to_chars(word, 1) for word in words]
        best = max(best, (scores.max().item(), given["pair"][spans[0][0] : spans[1][1]]))
    return best[1]
