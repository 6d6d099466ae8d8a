"""Training examples that `augment` has written: texts without labels, which a teacher's soft targets label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from ds_distill.augment import CLOZE, find_rows
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import Data
from ds_distill.finetune.features import Features, encode_features
from ds_distill.finetune.token_features import encode_sentences, keep_labeled
from ds_distill.run_folder import RunFolder
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.examples import Examples
from ds_distill.tasks.squad import Question
from ds_distill.tasks.squad_spans import make_spans
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import read_json_object


def read_augmented(folder: Path, data: Data, points: Sequence[FinetuneConfig]) -> list[dict[str, Any]]:
    """Return the rows of a folder that `augment` has written for a task's data.

    Args:
        folder: The folder.
        data: The task and its data.
        points: The settings of the runs, with the number of copies that each reads.

    Raises:
        UserError: The folder is none, or was made of other data, or has fewer copies than a point reads.
    """
    file = find_rows(folder)
    try:
        made_of = read_json_object(RunFolder(folder).identity)
        with file.open(encoding="utf-8") as stream:  # which ends lines at line feeds alone, not at U+2028 in a text
            rows = [_check_row(json.loads(line), data.task, number) for number, line in enumerate(stream, 1)]
    except (OSError, ValueError) as error:
        raise UserError(f"--augmented {folder}: cannot be read ({error}); write it anew") from error
    for key, here in (("task", data.task.name), ("data", data.fingerprint)):
        if made_of.get(key) != here:
            raise UserError(
                f"--augmented {folder}: was made of another task or of other files ({key} was {made_of.get(key)}, is "
                f"{here}); write it anew with `ds-distill augment`"
            )
    copies, most = max(point.augmented_copies for point in points), max((row["copy"] for row in rows), default=0)
    if rows and copies > most:
        raise UserError(
            f"finetune.augmented_copies = {copies}: --augmented has {most} copies of each example; give at most as many"
        )
    return rows


def _check_row(row: Any, task: Task, line: int) -> dict[str, Any]:
    """Return a row; raise ValueError where it is not one that `augment` writes, as after an edit by hand."""
    try:
        known = isinstance(row["source"], int | str) and isinstance(row["how"], str) and isinstance(row["copy"], int)
        if known and all(_is_text(row["texts"][name], task) for name in task.texts):
            return row
    except (TypeError, KeyError):
        pass
    raise ValueError(f"line {line} has no source, copy, how and texts with {', '.join(task.texts)}")


def _is_text(value: Any, task: Task) -> bool:
    if not task.tokens:
        return isinstance(value, str)
    return isinstance(value, list) and bool(value) and all(isinstance(word, str) for word in value)


def add_augmented(
    train: Features,
    rows: Sequence[dict[str, Any]],
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    settings: FinetuneConfig,
    length: int,
) -> Features:
    """Return the features of the training set, followed by those of augmented rows.

    Args:
        train: The features of the training set.
        rows: The rows.
        data: The task and its data.
        tokenizer: The tokenizer.
        settings: What copies to use, and of how many training examples.
        length: The most tokens of an example, or of a question's span.

    Raises:
        UserError: No row is to be used.
    """
    used = _used_sources(data, settings.max_train_samples)
    copies = settings.augmented_copies
    rows = [
        row for row in rows if (row["source"] in used or row["how"] == CLOZE) and (not copies or row["copy"] <= copies)
    ]
    if not rows:
        raise UserError(
            f"--augmented: none of its rows is a copy of the training examples that are used "
            f"(finetune.max_train_samples = {settings.max_train_samples}, finetune.augmented_copies = {copies}); raise "
            "these, or leave it out"
        )
    if data.task.spans:
        questions = [
            Question(f"augmented {number}", row["texts"]["question"], row["texts"]["context"], ())
            for number, row in enumerate(rows)
        ]
        spans = make_spans(questions, tokenizer, length)
        added = Features(spans.inputs, {"start_positions": spans.starts, "end_positions": spans.ends})
    elif data.task.tokens:
        sentences = [row["texts"][data.task.texts[0]] for row in rows]
        placeholders = [[0] * len(sentence) for sentence in sentences]
        added = keep_labeled(encode_sentences(Examples([sentences], placeholders), tokenizer, length)[0])
    else:
        texts = [[row["texts"][name] for row in rows] for name in data.task.texts]
        placeholder = cast(Examples, data.train).labels[0]
        added = encode_features(Examples(texts, [placeholder] * len(rows)), tokenizer, length)  # type: ignore[list-item]
    return Features(
        {name: [*values, *added.inputs[name]] for name, values in train.inputs.items()},
        {name: [*values, *added.labels[name]] for name, values in train.labels.items()},
        cut=train.cut,
        labeled=[True] * len(train) + [False] * len(added),
    )


def _used_sources(data: Data, most: int) -> set[int] | set[str]:
    """Return the names of the training examples that are used, as the rows have them."""
    if data.task.spans:
        return {question.id for question in cast(Sequence[Question], data.train[: most or None])}
    return set(range(min(len(data.train), most or len(data.train))))
