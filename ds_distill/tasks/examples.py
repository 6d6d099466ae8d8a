"""A task's examples: from files in the hub's columns or GLUE's own layout, or from the hub. What is wrong is said with file and line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds_distill.console import say
from ds_distill.errors import UserError, at_home
from ds_distill.tasks.catalog import Task

KINDS = (".jsonl", ".json", ".tsv", ".csv", ".parquet")
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error)
OTHER_NAMES = {"validation": "dev", "validation_matched": "dev_matched", "validation_mismatched": "dev_mismatched", "test": "validation"}  # IMDb's test


@dataclass
class Examples:
    """texts: one or two lists of strings; labels: ids, or floats for a number."""

    texts: list[list[str]]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Examples:
        return Examples([column[part] for column in self.texts], self.labels[part])


def split_files(folder: Path, split: str) -> list[Path]:
    """The file of a split in a folder: SPLIT.jsonl, .tsv, .csv, .parquet or .json, .gz and .zst too, SQuAD's SPLIT-v1.1.json, a hub download's
    SPLIT-00000-of-00001.parquet; else their own dev* for validation*.

    Raises UserError where there is none, or more than one.
    """
    names = [split, *([OTHER_NAMES[split]] if split in OTHER_NAMES else [])]
    patterns = "{}.*", "{}-v*.json*", "{}-*-of-*.parquet"
    by_name = [[file for file in sorted(file for pattern in patterns for file in folder.glob(pattern.format(name))) if kind_of(file)] for name in names]
    found = next((files for files in by_name if files), [])
    if len(found) != 1:
        wanted = " or ".join(f"{name}.*" for name in names)
        there = f"it holds {', '.join(file.name for file in found)}" if found else "it holds none" if folder.is_dir() else "there is no such folder"
        raise UserError(f"--data {folder}: one file {wanted} ({', '.join(KINDS)}, .gz and .zst too) is needed, {there}")
    return found


def load_examples(task: Task, split: str, data: str | None) -> Examples:
    """A split of `task` from the folder `data`, or from the hub (its cache, where there is no network) without one."""
    if data:
        [file] = split_files(at_home(data), split)
        return read_examples(task, file)
    rows = from_hub(task, split)
    return Examples([list(rows[name]) for name in task.texts], list(rows["label"]))


def from_hub(task: Task, split: str):
    """A split as the hub, or its cache on this machine, has it."""
    from datasets import load_dataset

    path, configuration = task.hub
    try:
        return load_dataset(path, configuration, split=split)
    except Exception as error:  # no network, no such split: the library answers with whatever breaks first
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--task {task.name}: the hub's {path} cannot be had ({reason}); give --data DIR with train.* and "
                        f"{', '.join(f'{name}.*' for name in task.validation)}") from error


def read_examples(task: Task, file: Path) -> Examples:
    """All examples of a file. Raises UserError, with file and line, for a missing column, an unknown label or an empty file."""
    texts: list[list[str]] = [[] for _ in task.texts]
    labels: list = []
    for line, row in rows_of(file, task.headless, short_rows_go=task.name == "qqp"):
        where = f"{file}, line {line}"
        row = {**row, **{hub: row[old] for old, hub in task.original if old in row}}
        if "label" not in row:
            raise UserError(f"{where}: no column label; it has {', '.join(map(str, row))}")
        for column, name in zip(texts, task.texts, strict=True):
            if not isinstance(row.get(name), str):
                raise UserError(f"{where}: no text in column {name}, which {task.name} needs; the row has {', '.join(map(str, row))}")
            column.append(row[name])
        labels.append(_label(task, row["label"], where))
    if not labels:
        raise UserError(f"{file}: no examples in it")
    return Examples(texts, labels)


def _label(task: Task, value, where: str) -> int | float:
    if task.regression:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 5:
            hint = "; the hub's test splits have no labels" if number == -1 else ""
            raise UserError(f"{where}: label {value!r}: {task.name} is scored by a number from 0 to 5{hint}")
        return number
    if isinstance(value, str) and value in task.labels:
        return task.labels.index(value)
    number = int(value) if isinstance(value, str) and value.isdecimal() or isinstance(value, float) and value.is_integer() else value
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(task.labels):
        return number
    known = ", ".join(f"{i} ({name})" for i, name in enumerate(task.labels))
    hint = "; the hub's test splits have no labels" if number in (-1, "-1") else ""
    raise UserError(f"{where}: label {value!r} is none of {task.name}'s: {known}{hint}")


def rows_of(file: Path, headless: tuple[str, ...] = (), *, short_rows_go: bool = False) -> Iterator[tuple[int, dict]]:
    """(line, row) of a file. headless: names of a tsv's columns where its first line has none of them. short_rows_go: leave out, and count, rows with
    too few columns, which GLUE's own QQP has."""
    try:
        yield from _rows_of(file, headless, short_rows_go)
    except UNREADABLE as error:
        raise UserError(f"{file}: cannot be read ({error}); it must be whole, in UTF-8") from error


def _rows_of(file: Path, headless: tuple[str, ...], short_rows_go: bool) -> Iterator[tuple[int, dict]]:
    kind, short = kind_of(file), 0
    if kind == ".parquet":
        import pyarrow.parquet

        try:
            yield from enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1)
        except pyarrow.ArrowException as error:
            raise UserError(f"{file}: cannot be read ({error})") from error
        return
    with opened(file) as stream:
        if kind in (".jsonl", ".json"):
            for line, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except ValueError as error:
                    raise UserError(f"{file}, line {line}: not JSON ({error}); one JSON object a line is expected") from error
                if not isinstance(row, dict):
                    raise UserError(f"{file}, line {line}: not a JSON object")
                yield line, row
        else:
            csv.field_size_limit(sys.maxsize)  # a text may be longer than the library's 131,072 characters
            # GLUE's own files quote nothing: a lone " in a sentence would swallow the lines behind it
            table = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if kind == ".tsv" else csv.reader(stream)
            names: list[str] | None = None
            for row in table:
                if names is None:
                    names = list(headless) if headless and kind == ".tsv" and len(row) == len(headless) and "label" not in row else row
                    if names is row:
                        continue
                if short_rows_go and 0 < len(row) < len(names):
                    short += 1
                elif row and len(row) != len(names):
                    raise UserError(f"{file}, line {table.line_num}: {len(row)} columns, its head has {len(names)} ({', '.join(names)})")
                elif row:
                    yield table.line_num, dict(zip(names, row, strict=True))
            if short:
                say(f"{file}: {short} rows with too few columns left out")


def opened(file: Path) -> io.TextIOBase:
    """The text of a file, unpacked."""
    if file.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(file), encoding="utf-8-sig", newline="")
    if file.suffix == ".zst":
        import pyarrow

        return io.TextIOWrapper(io.BufferedReader(pyarrow.CompressedInputStream(file.open("rb"), "zstd")), encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def kind_of(file: Path) -> str | None:
    suffixes = [suffix for suffix in file.suffixes if suffix not in (".gz", ".zst")]
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else None
