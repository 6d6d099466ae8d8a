"""The examples of a user's own task, with labels of any kind, and the names of its labels."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds_distill.data.charset import replace_surrogates
from ds_distill.tasks.catalog import OwnData, Task
from ds_distill.tasks.examples import Examples, check_value, read_rows
from ds_distill.tasks.labels import parse_number
from ds_distill.tasks.tagged import OUTSIDE, Sentence, check_tags, read_sentences, tags_of_types
from ds_distill.utils.errors import UserError, did_you_mean

SHOWN = 8  # how many labels a message names
MANY = 20  # more labels than this, with decimals among them, are numbers to predict
LARGEST = 1e18  # of a number to predict, whose loss is a square in fp32
POSITIVE = {"1": 1.0, "true": 1.0, "0": 0.0, "false": 0.0}


@dataclass
class Row:
    """An example as its file has it.

    Args:
        file: The file.
        lines: Its line, or that of each word.
        texts: One or two texts, or one list of words.
        labels: The names of its labels: one, any number, or one for each word; or its number.
    """

    file: Path
    lines: list[int]
    texts: list[Any]
    labels: list[Any]

    def where(self, label: int = 0) -> str:
        """Return the file and the line of a label."""
        return f"{self.file}, line {self.lines[min(label, len(self.lines) - 1)]}"


def load_own(task: Task) -> tuple[Task, Examples, Examples]:
    """Return (the task with its labels, the training set, the dev set) of a task with files of its own.

    Raises:
        UserError: A file has a mistake, such as a missing column or a label that no training example
            has. The message has the file, the line and the remedy.
    """
    own = _own(task)
    rows = read_own(task, own.train)
    train, dev = (rows, read_own(task, own.dev)) if own.dev else _hold_out(rows, own)
    task = replace(task, labels=_find_labels(task, train))
    if "f1" in task.metrics and not task.tokens and len(task.labels) != 2:
        raise UserError(
            f"{_own(task).source}: metric: f1: is for two labels, but the task has {len(task.labels)}; write f1_macro"
        )
    return task, number_labels(task, train), number_labels(task, dev)


def read_own(task: Task, file: Path) -> list[Row]:
    """Return the rows of a file, with the names of their labels.

    Raises:
        UserError: As of `load_own`, but whether a label is known is checked by `number_labels`.
    """
    if task.tokens:
        rows = [Row(file, sentence.lines, [sentence.words], sentence.tags) for sentence in _sentences(task, file)]
    else:
        rows = [Row(file, [line], *_read_row(task, row, f"{file}, line {line}")) for line, row in read_rows(file)]
    if not rows:
        expected = "a word and its tag on each line" if task.tokens else "a header and a row for each example"
        raise UserError(f"{file}: the file contains no examples; give a file with {expected}")
    return rows


def number_labels(task: Task, rows: Sequence[Row]) -> Examples:
    """Return the examples of rows, with the ids of their labels.

    Raises:
        UserError: A label is not one of the task's.
    """
    ids = {name: number for number, name in enumerate(task.labels)}
    labels: list[Any] = []
    for row in rows:
        if task.regression:
            labels.append(row.labels[0])
            continue
        numbers = [_number(task, ids, label, row, place) for place, label in enumerate(row.labels)]
        if task.multi_label:
            labels.append([float(number in numbers) for number in range(len(ids))])
        else:
            labels.append(numbers if task.tokens else numbers[0])
    return Examples([[row.texts[place] for row in rows] for place in range(len(task.texts))], labels)


def renumber_labels(examples: Examples, task: Task, labels: Sequence[str]) -> Examples:
    """Return examples whose labels are numbered in another order.

    They are not read again by other names, because numbers in a file are in the order of its task.

    Args:
        examples: Those of the task.
        task: The task, whose labels are names.
        labels: The same names, in another order.
    """
    new = [labels.index(name) for name in task.labels]
    renumbered: list[Any]
    if task.multi_label:
        old = [task.labels.index(name) for name in labels]
        renumbered = [[given[number] for number in old] for given in examples.labels]
    elif task.tokens:
        renumbered = [[new[number] for number in tags] for tags in examples.labels]
    else:
        renumbered = [new[number] for number in examples.labels]
    return replace(examples, labels=renumbered)


def _own(task: Task) -> OwnData:
    assert task.own is not None
    return task.own


def _sentences(task: Task, file: Path) -> Iterable[Sentence]:
    for sentence in read_sentences(file, task.texts[0], _own(task).label[0], task.labels):
        if task.entities:
            check_tags(sentence)
        yield sentence


def _read_row(task: Task, row: dict, where: str) -> tuple[list[str], list[Any]]:
    """Return (the texts, the labels) of a row of a file with columns."""
    own = _own(task)
    for key, names in (("text", task.texts), ("label", own.label)):
        for name in names:
            check_value(row, name, where)
            if name not in row:
                columns = [str(column) for column in row]
                free = [column for column in columns if column not in (*task.texts, *own.label)]
                raise UserError(
                    f"{where}: no column {name}{did_you_mean(name, free)}; the columns are {', '.join(columns)}; "
                    f"name one of them as `{key}` in {own.source}"
                )
    for name in task.texts:
        if not isinstance(row[name], str):
            raise UserError(f"{where}: no text in column {name}, but {row[name]!r}; complete the line, or remove it")
    texts = [replace_surrogates(row[name]) for name in task.texts]
    if not any(text.strip() for text in texts):
        raise UserError(f"{where}: no text in column {' and '.join(task.texts)}; complete the line, or remove it")
    if task.regression:
        return (texts, [_parse_number(row[own.label[0]], own.label[0], where)])
    if not task.multi_label:
        return (texts, [_name(row[own.label[0]], own.label[0], where)])
    if len(own.label) > 1:
        return (texts, [name for name in own.label if _is_set(row[name], name, where)])
    return (texts, _names(row[own.label[0]], own, where))


def _parse_number(value: Any, column: str, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {value!r} in column {column}: not a number; correct the line, or remove it")
    if abs(number) > LARGEST:
        raise UserError(
            f"{where}: {value!r} in column {column}: its square is no number in fp32; scale the numbers of the column "
            "to a range such as 0 to 5"
        )
    return number


def _name(value: Any, column: str, where: str) -> str:
    """Return the name of a label as text: csv has nothing else, and parquet turns 1 into 1.0 beside a gap."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, float | list | dict) or not str(value).strip():
        what = "no label" if value is None or value == "" else f"{value!r} is no label"
        raise UserError(
            f"{where}: {what} in column {column}; complete the line or remove it (a number to predict is of kind: "
            "regression, several labels are of kind: multi-label)"
        )
    return replace_surrogates(str(value).strip())


def _is_fraction(name: str) -> bool:
    try:
        return not float(name).is_integer()
    except (ValueError, OverflowError):
        return False


def _names(value: Any, own: OwnData, where: str) -> list[str]:
    """Return the names of the labels of one column: a list, or text in which they are separated."""
    if isinstance(value, str):
        value = value.split(None if own.separator == " " else own.separator)  # a space: any white space
        value = [part for part in value if part.strip()]
    if value is not None and not isinstance(value, list):
        raise UserError(
            f"{where}: {value!r} in column {own.label[0]}: must be a list of labels, or labels separated by "
            f"{own.separator!r}"
        )
    return list(dict.fromkeys(_name(part, own.label[0], where) for part in value or ()))


def _is_set(value: Any, column: str, where: str) -> bool:
    text = str(value).strip().casefold().removesuffix(".0")
    if text not in POSITIVE:
        raise UserError(f"{where}: {value!r} in column {column}: must be 1 if the example has this label, else 0")
    return bool(POSITIVE[text])


def _number(task: Task, ids: dict[str, int], label: str, row: Row, place: int) -> int:
    """Return the id of a label; the whole numbers from 0 on are ids where no name is a number."""
    if label in ids:
        return ids[label]
    number = parse_number(label)
    if number is not None and 0 <= number < len(ids) and all(parse_number(name) is None for name in ids):
        return number
    own, near = _own(task), did_you_mean(label, ids, 0.7)
    if not task.labels_from_data:
        known = f"{', '.join(list(ids)[:SHOWN])}{', …' if len(ids) > SHOWN else ''}"
        raise UserError(
            f"{row.where(place)}: label {label!r}: not one of `labels` in {own.source} ({known}){near}; correct the "
            "line, or add the label there"
        )
    remedy = "add examples of it" if own.dev else f"add examples of it, or change dev_share in {own.source}"
    raise UserError(
        f"{row.where(place)}: label {label!r}: no training example in {own.train} has it{near}; correct the line or "
        f"remove it, or {remedy}"
    )


def _find_labels(task: Task, train: Sequence[Row]) -> tuple[str, ...]:
    """Return the labels of the training set, in order.

    Raises:
        UserError: They are fewer than two, or one that the task lists is on none of the examples.
    """
    own = _own(task)
    if task.regression:
        if len({row.labels[0] for row in train}) == 1:
            raise UserError(f"{own.train}: all labels are {train[0].labels[0]}; give examples with different numbers")
        return ()
    found = {label for row in train for label in row.labels}
    if task.entities:
        types = {tag[2:] for tag in found if tag != OUTSIDE}
        if not types:
            raise UserError(f"{own.train}: all tags are {OUTSIDE}; give sentences with entities, such as B-person")
        if task.labels_from_data:
            return tags_of_types(sorted(types))
        _check_all_found(task, [tag[2:] for tag in task.labels if tag.startswith("B-")], types)
        return task.labels
    if not task.labels_from_data:
        ids = {name: number for number, name in enumerate(task.labels)}
        numbers = {_number(task, ids, label, row, place) for row in train for place, label in enumerate(row.labels)}
        _check_all_found(task, list(task.labels), {task.labels[number] for number in numbers})
        return task.labels
    if len(found) < (1 if task.multi_label else 2):
        have = f"all labels are {next(iter(found))!r}" if found else "no example has a label"
        raise UserError(f"{own.train}: {have}; give examples of at least two labels")
    if len(found) > MANY and any(map(_is_fraction, found)):
        raise UserError(
            f"{own.train}: column {own.label[0]} has {len(found)} different labels, and some are numbers with decimals "
            f"({next(filter(_is_fraction, sorted(found)))}); write kind: regression in {own.source}, or list `labels`"
        )
    if task.multi_label and found <= {"0", "1"} and all(len(row.labels) == 1 for row in train):
        raise UserError(
            f"{own.train}: column {own.label[0]} has 0 and 1 alone; give the column of each label, "
            f"label: [{own.label[0]}, another], or write kind: single-label in {own.source}"
        )
    return tuple(sorted(found, key=_place))


def _place(name: str) -> tuple[float, str]:
    """Return the key that labels are ordered by: whole numbers by value, and then all others as text."""
    return (float(name), "") if re.fullmatch(r"[+-]?\d+", name) else (math.inf, name)


def _check_all_found(task: Task, listed: Sequence[str], found: set[str]) -> None:
    if missing := [name for name in listed if name not in found]:
        own = _own(task)
        raise UserError(
            f"{own.source}: label {missing[0]}: no training example in {own.train} has it; add examples of it, or "
            f"remove it from {'`label`' if len(own.label) > 1 else '`labels`'}"
        )


def _hold_out(rows: list[Row], own: OwnData) -> tuple[list[Row], list[Row]]:
    """Return (training rows, dev rows), a share of the rows that depends on their texts alone.

    So equal texts are on the same side, and rows that are added later move no others.
    """
    limit = int(own.dev_share * 2**64)
    dev: list[Row] = []
    train: list[Row] = []
    for row in rows:
        digest = hashlib.sha256(json.dumps(row.texts).encode()).digest()
        (dev if int.from_bytes(digest[:8]) < limit else train).append(row)
    if not (train and dev):
        raise UserError(
            f"{own.source}: dev_share: {own.dev_share}: of the {len(rows)} examples in {own.train} it holds out "
            f"{len(dev)}; give more examples, or name a dev set with dev"
        )
    return train, dev
