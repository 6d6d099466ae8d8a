"""What the clients are asked, and what PyTorch answers in fp32 on the same folder.

Token ids come from tokenizer.json itself, and the most tokens from the model's own config: what a folder's tokenizer_config.json adds or forgets
is for the clients to show.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from tokenizers import Encoding, Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

from tests.clients.exports import Export

LONG = "She was born in a small village near the coast, and her father repaired clocks at the railway yards. " * 6
CLASSES = {
    "fill-mask": AutoModelForMaskedLM,
    "text-classification": AutoModelForSequenceClassification,
    "regression": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "feature-extraction": AutoModel,
}
MOST_ANSWER_WORDS = 15  # the longest answer of transformers' pipeline


def inputs_of(export: Export, mask: str) -> dict[str, dict[str, str]]:
    """Return the inputs by name: "text", and of two texts the second as "pair"; those called overlong have more tokens than the model positions."""
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


def reference_of(export: Export, folder: Path, model_folder: Path) -> dict:
    """Return {"inputs": by name, "answers": by name, views of PyTorch's answer}.

    Args:
        export: What `folder` is.
        folder: Where its tokenizer.json lies.
        model_folder: Where its weights lie: of an encoder the masked LM's folder, whose trunk it must equal.

    Views: "logits", the model's first outputs, flat; "scores", what a pipeline reports, by its key; "mean", the mean of the last hidden states.
    """
    config = AutoConfig.from_pretrained(model_folder)
    extra = (
        {"add_pooling_layer": False}
        if export.task == "feature-extraction" and config.model_type != "distilbert"
        else {}
    )
    model = CLASSES[export.task].from_pretrained(model_folder, use_safetensors=True, **extra).float().eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    positions = _positions(config)
    mask = "[MASK]" if tokenizer.token_to_id("[MASK]") is not None else "<mask>"
    inputs, answers = inputs_of(export, mask), {}
    for name, given in inputs.items():
        tokenizer.enable_truncation(positions)
        encoded = tokenizer.encode(given["text"], given.get("pair"))
        if ("overlong" in name) != bool(encoded.overflowing):
            raise AssertionError(f"{export.name}: the input {name} has {len(encoded.ids)} tokens of {positions}")
        tensors = _tensors(encoded, config)
        with torch.no_grad():
            found = model(**tensors, output_hidden_states=True)
        answer: dict = {"ids": encoded.ids}
        if export.task == "question-answering":
            answer["logits"] = _flat(found.start_logits) + _flat(found.end_logits)
            answer["scores"] = _best_span(model, tokenizer, given, positions, config)
        elif export.task == "feature-extraction":
            answer["logits"] = _flat(found.last_hidden_state)
        else:
            answer["logits"] = _flat(found.logits)
        if export.task == "fill-mask":
            at = encoded.ids.index(tokenizer.token_to_id(mask))
            answer["scores"] = {str(token): score for token, score in enumerate(_flat(found.logits[0, at].softmax(-1)))}
        if export.task == "text-classification":
            answer["scores"] = {
                config.id2label[label]: score for label, score in enumerate(_flat(found.logits[0].softmax(-1)))
            }
        if export.task == "regression":
            answer["scores"] = {config.id2label[0]: found.logits.item()}
        if export.task in ("fill-mask", "feature-extraction"):
            answer["mean"] = _flat(found.hidden_states[-1][0].mean(0))
        answers[name] = answer
        given["ids"], given["type_ids"] = encoded.ids, encoded.type_ids if "token_type_ids" in tensors else []
    return {"inputs": inputs, "answers": answers}


def write_reference(export: Export, folder: Path, model_folder: Path, file: Path) -> dict:
    """Return the reference of an export, computed once and kept in `file`."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(reference_of(export, folder, model_folder)))
        partial.replace(file)
    return json.loads(file.read_text())


def _positions(config: PretrainedConfig) -> int:
    """How many tokens the model takes: RoBERTa's positions begin behind the padding's id."""
    return config.max_position_embeddings - (config.pad_token_id + 1 if "roberta" in config.model_type else 0)


def _tensors(encoded: Encoding, config: PretrainedConfig) -> dict[str, torch.Tensor]:
    tensors = {
        "input_ids": torch.tensor([encoded.ids]),
        "attention_mask": torch.ones(1, len(encoded.ids), dtype=torch.long),
    }
    if config.model_type == "bert":
        tensors["token_type_ids"] = torch.tensor([encoded.type_ids])
    return tensors


def _flat(values: torch.Tensor) -> list[float]:
    return [float(value) for value in values.flatten()]


def _best_span(
    model, tokenizer: Tokenizer, given: dict[str, str], positions: int, config: PretrainedConfig
) -> dict[str, float]:
    """Return {"FIRST:LAST": score}, the characters of the likeliest answer, as transformers' pipeline finds it: in windows that overlap by half, over
    the context's tokens and [CLS], with whole words."""
    tokenizer.enable_truncation(positions, stride=positions // 2, strategy="only_second")
    first = tokenizer.encode(given["text"], given["pair"])
    best: tuple[float, str] = (-math.inf, "")
    for window in (first, *first.overflowing):
        with torch.no_grad():
            found = model(**_tensors(window, config))
        allowed = torch.tensor([sequence == 1 for sequence in window.sequence_ids])
        allowed[0] = True
        start, end = (
            logits[0].masked_fill(~allowed, -10000.0).softmax(-1) for logits in (found.start_logits, found.end_logits)
        )
        start[0] = end[0] = 0.0
        scores = torch.triu(start[:, None] * end[None]).tril(MOST_ANSWER_WORDS - 1)
        score, at = scores.max().item(), scores.argmax().item()
        words = [window.token_to_word(position) for position in divmod(at, len(start))]
        spans = [window.word_to_chars(word, 1) for word in words]
        best = max(best, (score, f"{spans[0][0]}:{spans[1][1]}"))
    return {best[1]: best[0]}
