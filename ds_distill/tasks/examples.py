"""The examples of a task, from files in the hub's columns or GLUE's own layout, or from the hub.

Mistakes are reported with file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_distill.data.charset import replace_surrogates
from ds_distill.data.csv_rows import CsvRows
from ds_distill.data.named_rows import AMBIGUOUS, make_row
from ds_distill.data.read_warnings import Findings
from ds_distill.tasks.catalog import OWN_TASK, Task
from ds_distill.tasks.labels import match_class, parse_number
from ds_distill.utils.console import log, log_if_significant
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.git_lfs import check_not_lfs_pointer

FILE_FORMATS = (".jsonl", ".json", ".tsv", ".csv", ".parquet")
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error)
# The last name is for IMDb's test split.
OTHER_NAMES = {
    "validation": "dev",
    "validation_matched": "dev_matched",
    "validation_mismatched": "dev_mismatched",
    "test": "validation",
}
# GLUE's own QQP has the first kind, MNLI and SNLI have the second.
SHORT, UNDECIDED = (
    "rows with too few columns",
    "rows without a label (-)",
)


@dataclass
class Examples:
    """The examples of a split.

    Args:
        texts: One or two lists of strings.
        labels: Class ids, or floats for a number; of several labels a list of 0.0 and 1.0 for each
            example, and of words a list of their class ids. `texts` then holds lists of words.
        left_out: How many rows are left out, by cause.
    """

    texts: list[list[Any]]
    labels: list[Any]
    left_out: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Examples:
        return Examples([column[part] for column in self.texts], self.labels[part], self.left_out)


def split_files(folder: Path, split: str, option: str = "--data") -> list[Path]:
    """Return the file of a split in a folder, as a list of one.

    The name is SPLIT.jsonl, .tsv, .csv, .parquet or .json, with or without .gz or .zst, SQuAD's
    SPLIT-v1.1.json, or a hub download's SPLIT-00000-of-00001.parquet. Otherwise it is the data
    set's own dev* for validation*.

    Args:
        folder: The folder.
        split: The name of the split.
        option: The option that gave the folder, for errors.

    Raises:
        UserError: If there is no such file, or more than one.
    """
    names = [split, *([OTHER_NAMES[split]] if split in OTHER_NAMES else [])]
    patterns = "{}.*", "{}-v*.json*", "{}-*-of-*.parquet"
    by_name = [
        [
            file
            for file in sorted(file for pattern in patterns for file in folder.glob(pattern.format(name)))
            if get_file_suffix(file)
        ]
        for name in names
    ]
    files = next((files for files in by_name if files), [])
    if len(files) != 1:
        expected = " or ".join(f"{name}.*" for name in names)
        problem = (
            f"but the folder contains {', '.join(file.name for file in files)}"
            if files
            else "but the folder contains none"
            if folder.is_dir()
            else (
                "but that is a file or a pipe; give the folder that holds it"
                if folder.exists()
                else "but there is no such folder"
            )
        )
        raise UserError(
            f"{option} {folder}: exactly one file {expected} is needed ({', '.join(FILE_FORMATS)}, plain, .gz or "
            f".zst), {problem}"
        )
    return files


def load_examples(task: Task, split: str, data: str | None) -> Examples:
    """Load a split of `task` from the folder `data`, or without one from the hub.

    Without a network, the hub's local cache is read.
    """
    if data:
        [file] = split_files(expand_user(data), split)
        return read_examples(task, file)
    rows = load_from_hub(task, split)
    labels = [parse_label(task, label, f"{task.hub[0]}, {split}, row {row}") for row, label in enumerate(rows["label"])]
    return Examples([list(rows[name]) for name in task.texts], labels)


def load_from_hub(task: Task, split: str):
    """Load a split from the hub, or from its cache on this machine."""
    from datasets import load_dataset

    path, configuration = task.hub
    try:
        return load_dataset(path, configuration, split=split)
    except Exception as error:  # Without a network or the split, the library raises whatever breaks first.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--task {task.name}: {path} is unavailable from the hub and its cache ({reason}); give --data DIR with "
            f"train.* and {', '.join(f'{name}.*' for name in task.validation)}"
        ) from error


def read_examples(task: Task, file: Path) -> Examples:
    """Read all examples of a file.

    Raises:
        UserError: If a column is missing, a label is unknown or the file is empty. The message has
            the file and the line.
    """
    texts, labels, left_out = read_columns(task, file)
    return Examples(texts, [parse_label(task, label, f"{file}, line {line}") for line, label in labels], left_out)


def read_columns(task: Task, file: Path) -> tuple[list[list[str]], list[tuple[int, object]], Counter[str]]:
    """Read the columns of a task from a file; the errors are those of `read_examples`.

    Returns:
        (The task's columns of text, the line and the raw label of each row, how many rows are left
        out by cause).
    """
    texts: list[list[str]] = [[] for _ in task.texts]
    labels: list[tuple[int, object]] = []
    left_out: Counter[str] = Counter()
    for line, row in read_rows(file, task.headerless_columns, left_out if task.name == "qqp" else None):
        where = f"{file}, line {line}"
        # A column that already has the hub's name takes precedence.
        row = {hub: row[old] for old, hub in task.glue_columns if old in row} | row
        for name in ("label", *task.texts):
            check_value(row, name, where)
        if "label" not in row:
            raise UserError(f"{where}: no column `label`; the columns are {', '.join(map(str, row))}")
        if row["label"] == "-" and not task.regression:
            left_out[UNDECIDED] += 1
            continue
        for column, name in zip(texts, task.texts, strict=True):
            if not isinstance(row.get(name), str):
                raise UserError(
                    f"{where}: no text in column {name}, which {task.name} needs; the columns are "
                    f"{', '.join(map(str, row))}"
                )
            column.append(replace_surrogates(row[name]))
        labels.append((line, row["label"]))
    if not labels:
        raise UserError(
            f"{file}: the file contains no "
            f"examples{f'; all {sum(left_out.values())} rows were skipped' if left_out else ''}"
        )
    for cause, count in left_out.items():
        log_if_significant(count, count + len(labels), f"{file}: {count} {cause} are skipped")
    return texts, labels, left_out


def parse_label(task: Task, value: Any, where: str) -> int | float:
    """Return the class, or the number, of a label as a file has it.

    Raises:
        UserError: If there is no such label. The message begins with `where`.
    """
    if task.regression:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 5:
            hint = "; the hub's test splits have no labels" if number == -1 else ""
            raise UserError(f"{where}: label {value!r}: the labels of {task.name} are numbers from 0 to 5{hint}")
        return number
    label_class = match_class(value, task.labels)
    if label_class is None:
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(task.labels))
        hint = "the hub's test splits have no labels" if parse_number(value) == -1 else OWN_TASK
        raise UserError(f"{where}: label {value!r}: not a label of {task.name}, whose labels are {known}; {hint}")
    return label_class


def read_rows(
    file: Path, headerless_columns: tuple[str, ...] = (), left_out: Counter[str] | None = None
) -> Iterator[tuple[int, dict]]:
    """Yield (line, row) for each row of a file.

    Args:
        file: The file.
        headerless_columns: The names of a tsv's columns, for a file whose first line has none of them.
        left_out: Counts the rows with too few columns. Without it such a row is an error.
    """
    check_not_lfs_pointer(file)
    try:
        yield from _read_rows(file, headerless_columns, left_out)
    except UNREADABLE as error:
        raise UserError(f"{file}: cannot be read ({error}); give a complete file in UTF-8") from error


def _read_rows(
    file: Path, headerless_columns: tuple[str, ...], left_out: Counter[str] | None
) -> Iterator[tuple[int, dict]]:
    kind = get_file_suffix(file)
    if kind == ".parquet":
        import pyarrow.parquet

        try:
            yield from enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1)
        except pyarrow.ArrowException as error:
            raise UserError(f"{file}: cannot be read ({error})") from error
        return
    with open_text(file) as stream:
        if kind in (".jsonl", ".json"):
            for line, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                expected = "one JSON object per line is expected"
                if text.lstrip().startswith("["):  # The array may be on one line or on many.
                    raise UserError(
                        f"{file}, line {line}: a JSON array; {expected}; convert it: `jq -c '.[]' {file.name}`"
                    )
                try:
                    row = json.loads(text, object_pairs_hook=make_row)
                except ValueError as error:
                    raise UserError(f"{file}, line {line}: not JSON ({error}); {expected}") from error
                if not isinstance(row, dict):
                    raise UserError(f"{file}, line {line}: not a JSON object, but {text.strip()[:40]}; {expected}")
                yield line, row
        else:
            read = _tsv_rows if kind == ".tsv" else _csv_rows
            names: list[str] | None = None
            for line, row in read(stream, file):
                if names is None:
                    names = (
                        list(headerless_columns)
                        if headerless_columns
                        and kind == ".tsv"
                        and len(row) == len(headerless_columns)
                        and "label" not in row
                        else row
                    )
                    if names is row:
                        continue
                if left_out is not None and 0 < len(row) < len(names):
                    left_out[SHORT] += 1
                elif row and len(row) != len(names):
                    raise UserError(
                        f"{file}, line {line}: {len(row)} columns, but the header has {len(names)} ({', '.join(names)})"
                    )
                elif row:
                    yield line, make_row(list(zip(names, row, strict=True)))


def _csv_rows(stream: io.TextIOBase, file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of each row.

    Text that is no csv, or rows that a quote has swallowed, are refused or reported with their
    place.
    """
    rows, findings, columns = CsvRows(stream, ",", str(file)), Findings(), 0
    for row in rows:
        columns = columns or len(row)
        rows.check_lines(row, columns, findings)
        yield rows.line, row
    for sentence in findings.sentences():
        log(sentence)


def _tsv_rows(stream: io.TextIOBase, file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of each row.

    GLUE's own files quote nothing: a lone " in a sentence would swallow the lines after it.
    """
    csv.field_size_limit(sys.maxsize)  # A text may be longer than the library's 131,072 characters.
    rows, quoted, count = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE), 0, 0
    for row in rows:
        count += 1
        quoted += any(len(field) > 1 and field[0] == field[-1] == '"' for field in row)
        yield rows.line_num, row
    log_if_significant(
        quoted,
        count,
        f"{file}: {quoted:,} of {count:,} rows have quotes around a field, which are read as part of the text; if "
        "they are not part of it, give csv or jsonl instead of tsv",
    )


def check_value(row: dict, name: str, where: str) -> None:
    """Raise UserError, beginning with `where`, if a row has several values under one name."""
    if row.get(name) is AMBIGUOUS:
        raise UserError(f"{where}: more than one column is named {name!r}; rename all but one")


def open_text(file: Path) -> io.TextIOBase:
    """Open a file as text, uncompressed."""
    if file.suffix.lower() == ".gz":
        return io.TextIOWrapper(gzip.open(file), encoding="utf-8-sig", newline="")
    if file.suffix.lower() == ".zst":
        import pyarrow

        return io.TextIOWrapper(
            io.BufferedReader(pyarrow.CompressedInputStream(file.open("rb"), "zstd")), encoding="utf-8-sig", newline=""
        )
    return file.open(encoding="utf-8-sig", newline="")


def get_file_suffix(file: Path, formats: tuple[str, ...] = FILE_FORMATS) -> str | None:
    """Return the suffix of a file of one of the formats, without that of compression; None for others."""
    suffixes = [suffix.lower() for suffix in file.suffixes if suffix.lower() not in (".gz", ".zst")]
    return suffixes[-1] if suffixes and suffixes[-1] in formats else None
