"""The accuracy that a format costs: its outputs compared with PyTorch's fp32 outputs, on text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ds_distill.data.readers import documents_in_turn
from ds_distill.exporters.model import ExportModel
from ds_distill.models.inputs import pad_right
from ds_distill.utils.articles import counted
from ds_distill.utils.console import log, progress_over
from ds_distill.utils.errors import UserError

SAMPLE = Path(__file__).with_name("sample.txt")
MASKED_SHARE = 0.15
# In nats: the top-1 is a tenth likelier than the second. Any rounding, also bf16's, can reverse
# closer calls.
MARGIN_NATS = 0.1
NAMED = 5  # texts on a model card
Sequence = dict[str, list[int]]  # the inputs of a sequence, by name


@dataclass(frozen=True)
class Batch:
    """A batch of sequences.

    Attributes:
        inputs: int64 [B, L] by name, padded to the longest.
        at: bool [B, L], the positions that are compared.
        labels: int64 [B, L], the text's own tokens.
        origins: The number of the text that each sequence is of.
    """

    inputs: dict[str, np.ndarray]
    at: np.ndarray
    labels: np.ndarray
    origins: list[int]


def text_batches(
    source: ExportModel,
    text: list[str],
    *,
    sequences: int,
    tokens: int | None = None,
    length: int = 128,
    batch: int = 8,
    option: str = "--text",
) -> list[Batch]:
    """Return the first tokens of documents of each of the texts as batches; texts, and the files of each, take turns.

    Where there are fewer documents, further tokens of those that have more follow. For a masked-LM head 15 % of the
    tokens are masked, drawn from a fixed seed, and `at` marks them. Otherwise `at` is every token.

    Args:
        source: The model and its tokenizer.
        text: Texts, as for ds-distill prepare. If empty, the sample that comes with this package is
            used.
        sequences: The most sequences to take.
        tokens: How many tokens are enough, if fewer sequences have them.
        length: The number of tokens of a sequence, at most.
        batch: The number of sequences per batch.
        option: The option that gives the texts, for errors.

    Raises:
        UserError: A path is wrong, or no document is long enough.
    """
    length = min(length, source.positions)
    taken, looked_at = _take_sequences(source, text, sequences, tokens, length)
    if not taken:
        raise UserError(
            f"{option} {' '.join(text)}: no document has 12 or more tokens, which an export needs; give more text"
        )
    for number in sorted(looked_at - {origin for origin, _ in taken}):
        log(f"{option} {text[number]}: none of it is used, because its documents have fewer than 12 tokens")
    generator, batches = np.random.default_rng(0), []
    for start in range(0, len(taken), batch):
        part = taken[start : start + batch]
        inputs = pad_right([sequence for _, sequence in part], source.reader.pad_token_id)
        special, labels = (
            inputs.pop("special_tokens_mask").astype(bool) | (inputs["attention_mask"] == 0),
            inputs["input_ids"],
        )
        at = ~special
        if source.head == "masked-lm":
            at &= generator.random(at.shape) < MASKED_SHARE
            inputs["input_ids"] = np.where(at, source.reader.mask_token_id, labels)
        batches.append(Batch(inputs, at, labels, [origin for origin, _ in part]))
    return batches


def _take_sequences(
    source: ExportModel, text: list[str], sequences: int, tokens: int | None, length: int
) -> tuple[list[tuple[int, Sequence]], set[int]]:
    """Return ((the number of its text, inputs by name) of each sequence, the texts that were looked at).

    See `text_batches` for the arguments.
    """
    documents = documents_in_turn(text or [str(SAMPLE)])
    waiting: Iterator[tuple[int, list[Sequence]]] = (
        (origin, _cut(source, document, length)) for origin, document in documents
    )
    taken: list[tuple[int, Sequence]] = []
    looked_at: set[int] = set()
    found = 0
    while True:
        longer = []
        for origin, (first, *others) in waiting:
            if len(taken) == sequences or tokens is not None and found >= tokens:
                return taken, looked_at
            looked_at.add(origin)
            if len(first["input_ids"]) >= min(12, length):
                taken.append((origin, first))
                found += len(first["input_ids"])
            if others:
                longer.append((origin, others))
        if not longer:
            return taken, looked_at
        waiting = iter(longer)


def _cut(source: ExportModel, document: str, length: int) -> list[Sequence]:
    """Return the inputs of the parts, of at most `length` tokens, that follow each other in a document."""
    encoded = source.reader(
        document,
        truncation=True,
        max_length=length,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        return_attention_mask=True,
    )
    keys = (*source.inputs, "special_tokens_mask")
    return [{key: encoded[key][number] for key in keys} for number in range(len(encoded["input_ids"]))]


def describe_texts(text: list[str], batches: list[Batch]) -> str:
    """Return what batches hold of the texts, for a model card: the sequences of each, and the tokens of all.

    A path is named without its folders, since a published page names no folder of this machine.
    """
    counts = Counter(origin for batch in batches for origin in batch.origins)
    names = [Path(name).name for name in text] or ["this package's sample text"]
    parts = [f"{names[number]} ({counts[number]:,})" for number in sorted(counts)]
    if len(parts) > NAMED:
        parts[NAMED:] = [f"{len(parts) - NAMED:,} more"]
    return f"{', '.join(parts)}: {counted(counts.total(), 'sequence')}, {count_tokens(batches):,} tokens"


def count_tokens(batches: list[Batch]) -> int:
    """Return the number of tokens of batches, without padding."""
    return sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)


def torch_runner(source: ExportModel) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """Return a function that calls the model that files are made of, as the runtimes are called."""

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = source.traced(**{key: torch.from_numpy(value) for key, value in inputs.items()})
        return [value.numpy() for value in outputs.to_tuple()]

    return run


def compare(
    source: ExportModel, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]], batches: list[Batch], what: str
) -> dict:
    """Compare a runtime's outputs with those of PyTorch in fp32.

    Args:
        source: The model.
        run: Takes inputs by name and returns outputs in the model's order.
        batches: The batches to compare on.
        what: The label of the progress bar.

    Returns:
        Figures by name. max_difference is that of an output's value where `at` is true, and
        max_output the largest value there, its scale. agreement is the share of equal top-1 outputs
        (tokens, classes, or answer starts and ends; absent without a head and for a head with one
        number), and positions is how many were compared. clear_agreement and clear_positions, if
        there are any, count only those whose two best outputs differ by MARGIN_NATS or more in PyTorch.
        For masked-LM only: loss (nats per masked token) and accuracy, and PyTorch's.

    Raises:
        UserError: There is too little text to compare on.
    """
    reference, max_difference, max_output, num_compared = torch_runner(source), 0.0, 0.0, 0
    sums: dict[str, float] = dict.fromkeys(("positions", "agreement", "clear_positions", "clear_agreement"), 0)
    for batch in progress_over(batches, what):
        for output, expected in zip(
            _select_compared(source, run(batch.inputs), batch),
            _select_compared(source, reference(batch.inputs), batch),
            strict=True,
        ):
            # unlike max, maximum lets a NaN through, and a NaN passes no limit
            max_difference, max_output = (
                float(np.maximum(max_difference, np.abs(output - expected).max(initial=0))),
                float(np.maximum(max_output, np.abs(expected).max(initial=0))),
            )
            num_compared += expected.shape[0]
            if (
                source.head == "encoder" or expected.shape[-1] == 1
            ):  # no choice between hidden values, nor of one number
                continue
            choice, clear = get_top1(expected)
            is_same = output.argmax(-1) == choice
            _add(
                sums,
                positions=is_same.size,
                agreement=is_same.sum(),
                clear_positions=clear.sum(),
                clear_agreement=(is_same & clear).sum(),
            )
            if source.head == "masked-lm":
                for name, logits in (("", output), ("_pytorch", expected)):
                    labels = batch.labels[batch.at]
                    _add(
                        sums,
                        **{
                            f"loss{name}": _nats(logits, labels),
                            f"accuracy{name}": (logits.argmax(-1) == labels).sum(),
                        },
                    )
    if not num_compared:
        raise UserError("--text: there is too little text for a comparison; give more")
    figures: dict = {"max_difference": max_difference, "max_output": max_output}
    if not sums["positions"]:
        return figures
    if not sums["clear_positions"]:
        del sums["clear_agreement"]
    for name, value in sums.items():
        count = name.endswith("positions")
        figures[name] = (
            int(value) if count else float(value / sums["clear_positions" if name.startswith("clear") else "positions"])
        )
    return figures


def get_top1(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ([...] index of the largest of each row, [...] whether it leads by MARGIN_NATS), of outputs [..., C]."""
    best = np.partition(outputs, -2, axis=-1)[..., -2:]
    return outputs.argmax(-1), best[..., 1] - best[..., 0] >= MARGIN_NATS


def agreement_shares(same: np.ndarray, clear: np.ndarray) -> dict[str, float]:
    """Return the shares of equal top-1 outputs: agreement of all, and clear_agreement of the clear ones, if any."""
    return {"agreement": float(same.mean())} | ({"clear_agreement": float(same[clear].mean())} if clear.any() else {})


def _add(sums: dict, **values) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value


def _nats(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the sum of −log softmax(logits)[label]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, labels[:, None], -1)[:, 0]).sum())


def _select_compared(source: ExportModel, outputs: list[np.ndarray], batch: Batch) -> list[np.ndarray]:
    """Return the rows of numbers to compare; a top-1 is taken along their last axis."""
    head = source.head
    if head == "classification" and source.model.config.problem_type == "multi_label_classification":
        return [np.stack([np.zeros_like(outputs[0]), outputs[0]], axis=-1)]  # each label is a choice of its own
    if head == "classification":
        return [outputs[0]]
    if head == "question-answering":
        return [part[row, at][None] for part in outputs[:2] for row, at in enumerate(batch.at)]
    return [outputs[0][batch.at]]
