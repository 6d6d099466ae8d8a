"""The text column of files of rows and of hub data sets: what is no text, or no row, is refused with its place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from ds_distill.data.files import open_unpacked
from ds_distill.data.findings import Findings
from ds_distill.data.sources import Piece, arrow_batches, open_hub, open_parquet
from ds_distill.utils.errors import UserError

_LONGEST_FIELD = 1 << 27  # characters; a quote that is not closed ends there at the latest
_MANY_LINES = 200  # of one field of a csv, each like a row: a quote that is not closed
_QUOTES = "a quote that is text is written as two, in a field with quotes around it; or give jsonl"
_KINDS = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}


def read_jsonl(piece: Piece, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    with open_unpacked(Path(piece.path), Path(piece.path).suffix, piece.start, piece.stop, tick) as stream:
        for number, line in enumerate(stream, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
            if not text.strip():
                continue
            where = f"{piece.path}, line {number}" + (f" after byte {piece.start}" if piece.start else "")
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                if number == 1 and not piece.start and text.strip() in ("{", "["):
                    raise UserError(f"{where}: JSON over many lines; one object per line is expected: "
                                    f"jq -c '{'.[]' if '[' in text else '.'}' {piece.path} > NEW.jsonl") from error
                raise UserError(f"{where}: not JSON ({error}); one JSON object a line is expected") from error
            if isinstance(row, list):
                raise UserError(f"{where}: a JSON array; one JSON object a line is expected: jq -c '.[]' {piece.path} > NEW.jsonl")
            if not isinstance(row, str) and (not isinstance(row, dict) or piece.column not in row):
                raise no_column(piece, where, list(row) if isinstance(row, dict) else [])
            yield _text(row if isinstance(row, str) else row[piece.column], piece, where)


def read_csv(piece: Piece, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    csv.field_size_limit(_LONGEST_FIELD)
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in Path(piece.path).suffixes] else ","
    binary = open_unpacked(Path(piece.path), Path(piece.path).suffix, piece.start, piece.stop, tick)
    with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = _CsvRows(stream, delimiter, piece.path)
        header, first = next(rows, []), next(rows, None)
        if first is None:
            return
        if piece.column not in header:
            raise no_column(piece, f"{piece.path}, line 1", header)
        if header.count(piece.column) > 1:
            raise UserError(f"{piece.path}: {header.count(piece.column)} columns are called {piece.column!r}; rename all but one in its first line")
        place = header.index(piece.column)
        for row in chain([first], rows):
            rows.check(row, header, place, findings)
            yield row[place]


class _CsvRows:
    """The rows of a csv file, each a list of fields; what is no csv is a UserError with the row and the line where it begins."""

    def __init__(self, stream: Iterator[str], delimiter: str, path: str):
        self._lines, self._delimiter, self._path = stream, delimiter, path
        self._row: list[str] = []  # the lines of the row at hand
        self._number, self._begins, self._line = -1, 1, 0
        self._reader = csv.reader(self._remembered(), delimiter=delimiter, strict=True)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        while True:
            self._row, self._begins = [], self._line + 1
            if row := self._parse():
                self._number += 1
                return row

    def _where(self) -> str:
        return f"{self._path}, row {self._number} (line {self._begins})"

    def check(self, row: list[str], header: list[str], place: int, findings: Findings) -> None:
        """UserError where the row at hand has other fields than the header, so that the one at `place` may be another; remarks on what may be meant."""
        names = f"the header has {len(header)} ({_listed(header)})"
        if len(row) > len(header) and any(field.strip() for field in row[len(header) :]):
            hint = "; a quote inside quotes is written as two, not with a backslash" if '\\"' in "".join(self._row) else ""
            what = "tab" if self._delimiter == "\t" else "comma"
            raise UserError(f"{self._where()}: {len(row)} fields, {names}; a field that holds a {what} needs quotes around it{hint}")
        if len(row) < len(header):
            if len(row) <= place:
                raise UserError(f"{self._where()}: {len(row)} fields, {names}; a field that holds a line end needs quotes around it")
            findings.remark("short rows", f"{self._where()}: {len(row)} fields, {names}: is there a line end outside quotes?")
        if len(self._row) > 1:
            for field in row:
                self._check_lines(field, len(header), findings)

    def _check_lines(self, field: str, columns: int, findings: Findings) -> None:
        lines = field.splitlines()[1:]
        alike = sum(line.count(self._delimiter) >= columns - 1 for line in lines)
        swallowed = self._delimiter == "\t" and columns > 1 and 0 < alike == len(lines)
        if swallowed and alike > 1:
            raise UserError(f"{self._where()}: a field that begins with a quote goes on over {alike:,} more rows; {_QUOTES}")
        if swallowed or (len(lines) >= _MANY_LINES and alike >= 0.9 * len(lines)):
            findings.remark("quotes", f"{self._where()}: one field holds {len(lines):,} line ends: is its quote closed where it should be?")

    def _remembered(self) -> Iterator[str]:
        for line in self._lines:
            self._row.append(line)
            self._line += 1
            yield line

    def _parse(self) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error as error:
            # blanks between a closing quote and the next field are not strict csv, and harmless
            closed = re.sub(rf'"[ ]+(?={self._delimiter}|\r?\n?$)', '"', self._row[-1]) if self._row else ""
            if self._row and closed != self._row[-1]:
                self._row[-1] = closed
                self._reader = csv.reader(chain(self._row[:], self._remembered()), delimiter=self._delimiter, strict=True)
                return self._parse()
            self._number += 1
            if "expected after" in str(error):
                raise UserError(f"{self._where()}: text goes on after a closing quote; {_QUOTES}") from error
            if "unexpected end" in str(error) or "field larger" in str(error):
                raise UserError(f"{self._where()}: the quote that opens there is never closed; {_QUOTES}") from error
            raise


def read_parquet(piece: Piece, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    table = open_parquet(Path(piece.path))
    for number, group in enumerate(range(piece.start, piece.stop), 1):
        for batch in table.iter_batches(batch_size=256, row_groups=[group], columns=[piece.column]):
            yield from _column(batch.column(0), piece)
        tick(piece.size * number // (piece.stop - piece.start))


def read_arrow(piece: Piece, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    for batch in arrow_batches(Path(piece.path)):
        column = batch.column(batch.schema.names.index(piece.column))
        for start in range(0, len(column), 256):
            yield from _column(column.slice(start, 256), piece)
    tick(piece.size)


def read_hub(piece: Piece, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    data = open_hub(piece.path, piece.streaming).select_columns(piece.column)
    for number, row in enumerate(data.shard(num_shards=piece.stop, index=piece.start), 1):
        yield _text(row[piece.column], piece, f"{piece.path}, row {number} of part {piece.start + 1}")


def _column(array, piece: Piece) -> Iterator[str]:
    """The texts of an Arrow array; its type was looked at before."""
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:  # a writer that does not check what it calls UTF-8
        values = array.cast("large_binary" if "large" in str(array.type) else "binary").to_pylist()
    return (_text(value, piece, piece.path) for value in values)


def _text(value, piece: Piece, where: str) -> str:
    """A row's text; nothing for null, and for NaN, which stands for it where rows went through pandas."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):  # as older Spark and Impala write strings
        return value.decode(errors="surrogateescape")
    raise UserError(f"{where}: column {piece.column!r} holds {_KINDS.get(type(value), type(value).__name__)}, not text; "
                    f"make it one string per row, or choose another column: {piece.path}#COLUMN")


def no_column(piece: Piece, where: str, names: list) -> UserError:
    return UserError(f"{where}: no column {piece.column!r}, it has {_listed(names) or 'none'}; choose one: {piece.path}#COLUMN")


def _listed(names: list) -> str:
    text = ", ".join(map(str, names))
    return text if len(text) <= 300 else f"{text[:300]}…"
