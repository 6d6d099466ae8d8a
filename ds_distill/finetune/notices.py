"""Notices about input that a fine-tuning does not read, or reads otherwise than one may expect.

It is counted for the summary, and logged where it is more than a trace.
"""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import Data, EncodedTask, get_split_name
from ds_distill.finetune.features import Features
from ds_distill.tasks.squad_spans import LONGEST_QUESTION
from ds_distill.utils.articles import counted
from ds_distill.utils.console import TRACE, log, log_if_significant

UNPLACED = "questions whose answer no part of the context holds"
SAME_MEAN = 1.0  # how far the mean of a teacher's scores may be from the labels'
SAME_SLOPE = (0.5, 2.0)  # how much the labels may grow where the teacher's scores grow by one
CLEAR = 0.3  # the correlation from which the slope is meaningful


def not_read(data: Data, sets: EncodedTask, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict]:
    """Return how much is not read, by set.

    The keys are `truncated` for truncated examples, `unknown` for tokens that stand for words which
    the vocabulary does not hold, and `left_out` for unused rows or questions by cause. Sets and
    causes without any are not in `left_out`.
    """
    left_out = data.left_out
    if sets.unplaced:
        left_out["train"] = left_out.get("train", {}) | {UNPLACED: sets.unplaced}
    unknown = {name: part.count(tokenizer.unk_token_id) for name, part in sets.parts.items()}
    return {
        "truncated": {name: part.cut for name, part in sets.parts.items()},
        "unknown": unknown,
        "left_out": left_out,
    }


def format_not_read(counts: dict[str, dict]) -> str:
    """Return the text of a model card on input that is not read, from the counts of `not_read`.

    It is empty where everything is read.
    """
    descriptions = {
        "truncated": lambda count: f"parts of {counted(count, 'truncated example')}",
        "unknown": lambda count: f"{counted(count, 'token')} unknown to the tokenizer",
    }
    parts = [
        f"{describe(count)} ({part})"
        for key, describe in descriptions.items()
        for part, count in counts[key].items()
        if count
    ]
    parts += [
        f"{count:,} {cause} skipped ({part})"
        for part, causes in counts["left_out"].items()
        for cause, count in causes.items()
    ]
    return f"Not read: {', '.join(parts)}." if parts else ""


def log_not_read(
    data: Data, sets: EncodedTask, point: FinetuneConfig, positions: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Log input that is not read.

    That is the length of an example where another was asked for, how many examples are truncated to
    it, and how much of them is unknown.

    Args:
        data: The data as it was read from the files.
        sets: The data as `tokenizer` encodes it.
        point: The settings that were asked for.
        positions: The most tokens that the models read.
        tokenizer: The tokenizer; its truncation side and unknown token are named.
    """
    name, length = data.task.name, sets.length
    if point.max_length > length:
        log(
            f"finetune.max_length = {point.max_length}: the model has only {positions} positions, so {length} tokens "
            "of each example are read"
        )
    totals = {"train": min(len(data.train), point.max_train_samples or len(data.train))}
    totals |= {get_split_name(split): len(part) for split, part in data.dev.items()}
    cut, end = {part: features.cut for part, features in sets.parts.items()}, tokenizer.truncation_side
    if any(cut[part] > TRACE * total for part, total in totals.items()):
        unit = "questions" if data.task.spans else "examples"  # Contexts are read in parts.
        max_tokens = min(LONGEST_QUESTION, length // 2) if data.task.spans else length
        hint = (
            f"; the model can read {positions} tokens (raise finetune.max_length)"
            if max_tokens == length < positions
            else ""
        )
        log(f"{name}: {unit} longer than {max_tokens} tokens are truncated on the {end}: {_shares(cut, totals)}{hint}")
    tokens = {part: sum(features.lengths) for part, features in sets.parts.items()}
    unknown = {part: features.count(tokenizer.unk_token_id) for part, features in sets.parts.items()}
    if any(unknown[part] > TRACE * total for part, total in tokens.items()):
        log(
            f"{name}: some tokens of the texts are unknown to the tokenizer ({tokenizer.unk_token}): "
            + _shares(unknown, tokens)
        )
    log_if_significant(
        sets.unplaced,
        totals["train"],
        f"{name}: {sets.unplaced:,} of {totals['train']:,} training {UNPLACED} are not trained on",
    )


def _shares(counts: dict[str, int], totals: dict[str, int]) -> str:
    return ", ".join(f"{counts[part]:,} of {total:,} ({part})" for part, total in totals.items())


def log_scale_mismatch(given: str, train: Features) -> None:
    """Log if a teacher's scores and the labels have different scales, such as 0 to 1 and 0 to 5.

    A student would learn both.

    Args:
        given: The option and the folder, for the line.
        train: The training set with the teacher's outputs and the labels, one number each.
    """
    rows = train.labeled_rows  # augmented texts have none
    scores = np.array(train.teacher, np.float64).reshape(-1)[rows]
    labels = np.array(train.labels["labels"], np.float64)[rows]
    if len(scores) < 2 or np.ptp(labels) == 0:
        return
    alike = bool(np.ptp(scores)) and abs(np.corrcoef(scores, labels)[0, 1]) >= CLEAR
    slope = np.cov(scores, labels)[0, 1] / scores.var(ddof=1) if alike else 1.0
    if abs(scores.mean() - labels.mean()) > SAME_MEAN or not SAME_SLOPE[0] <= slope <= SAME_SLOPE[1]:
        log(
            f"{given}: its scores, {_range(scores)}, have another scale than the labels, {_range(labels)}, and the "
            "student learns from both; give a teacher that was fine-tuned on labels of the same scale, or train "
            "without one"
        )


def _range(values: np.ndarray) -> str:
    return f"{values.min():.2g} to {values.max():.2g} (mean {values.mean():.2g})"
