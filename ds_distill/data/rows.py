"""The text column of files of rows and of hub data sets.

Values that are not text, and lines that are not rows, are refused with their place.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from ds_distill.data.csv_rows import CsvRows, format_columns
from ds_distill.data.files import open_unpacked
from ds_distill.data.named_rows import AMBIGUOUS, make_row
from ds_distill.data.read_warnings import Findings
from ds_distill.data.sources import WorkUnit, arrow_batches, open_hub, open_parquet
from ds_distill.utils.errors import UserError

_KINDS = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}


def read_jsonl(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of a piece of JSON lines."""
    with open_unpacked(Path(piece.path), Path(piece.path).suffix, piece.start, piece.stop, tick) as stream:
        for number, line in enumerate(stream, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
            if not text.strip():
                continue
            where = f"{piece.path}, line {number}" + (f" after byte {piece.start}" if piece.start else "")
            try:
                row = json.loads(text, object_pairs_hook=make_row)
            except (ValueError, RecursionError) as error:
                if number == 1 and not piece.start and text.strip() in ("{", "["):
                    raise UserError(
                        f"{where}: a JSON value that spans several lines; one object per line is expected: jq -c "
                        f"'{'.[]' if '[' in text else '.'}' {piece.path} > NEW.jsonl"
                    ) from error
                raise UserError(f"{where}: not JSON ({error}); one JSON object per line is expected") from error
            if isinstance(row, list):
                raise UserError(
                    f"{where}: a JSON array; one JSON object per line is expected: jq -c '.[]' {piece.path} > NEW.jsonl"
                )
            if isinstance(row, dict) and row.get(piece.column) is AMBIGUOUS:
                raise UserError(
                    f"{where}: {piece.column!r} is given more than once, with different values; rename all but one"
                )
            if not isinstance(row, str) and (not isinstance(row, dict) or piece.column not in row):
                raise no_column(piece, where, list(row) if isinstance(row, dict) else [])
            yield _text(row if isinstance(row, str) else row[piece.column], piece, where)


def read_csv(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of a csv or tsv piece."""
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in Path(piece.path).suffixes] else ","
    binary = open_unpacked(Path(piece.path), Path(piece.path).suffix, piece.start, piece.stop, tick)
    with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = CsvRows(stream, delimiter, piece.path)
        header, first = next(rows, []), next(rows, None)
        if first is None:
            return
        if piece.column not in header:
            raise no_column(piece, f"{piece.path}, line 1", header)
        if header.count(piece.column) > 1:
            raise UserError(
                f"{piece.path}: {header.count(piece.column)} columns are named {piece.column!r}; rename all but one in "
                "the first line"
            )
        place = header.index(piece.column)
        for row in chain([first], rows):
            rows.check(row, header, place, findings)
            yield row[place]


def read_parquet(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of a piece of a parquet file."""
    table = open_parquet(Path(piece.path))
    for number, group in enumerate(range(piece.start, piece.stop), 1):
        for batch in table.iter_batches(batch_size=256, row_groups=[group], columns=[piece.column]):
            yield from _column(batch.column(0), piece)
        tick(piece.size * number // (piece.stop - piece.start))


def read_arrow(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of an Arrow file."""
    for batch in arrow_batches(Path(piece.path)):
        column = batch.column(batch.schema.names.index(piece.column))
        for start in range(0, len(column), 256):
            yield from _column(column.slice(start, 256), piece)
    tick(piece.size)


def read_hub(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of a piece of a hub data set."""
    data = open_hub(piece.path, piece.streaming).select_columns(piece.column)
    for number, row in enumerate(data.shard(num_shards=piece.stop, index=piece.start), 1):
        yield _text(row[piece.column], piece, f"{piece.path}, row {number} of part {piece.start + 1}")


def _column(array, piece: WorkUnit) -> Iterator[str]:
    """Return the texts of an Arrow array, whose type was checked before."""
    try:
        values = array.to_pylist()
    except UnicodeDecodeError:  # The writer did not check what it declared as UTF-8.
        values = array.cast("large_binary" if "large" in str(array.type) else "binary").to_pylist()
    return (_text(value, piece, piece.path) for value in values)


def _text(value, piece: WorkUnit, where: str) -> str:
    """Return a row's text.

    It is empty for null, and for NaN, which stands for null where rows went through pandas.
    """
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):  # Older Spark and Impala write strings like this.
        return value.decode(errors="surrogateescape")
    raise UserError(
        f"{where}: column {piece.column!r} contains {_KINDS.get(type(value), type(value).__name__)}, not text; make it "
        f"one string per row, or choose another column: {piece.path}#COLUMN"
    )


def no_column(piece: WorkUnit, where: str, names: list) -> UserError:
    """Return the UserError for a column that does not exist."""
    return UserError(
        f"{where}: no column {piece.column!r}; the columns are {format_columns(names) or 'none'}; choose one: "
        f"{piece.path}#COLUMN"
    )
