"""The text column of files of rows and of hub data sets.

Values that are not text, and lines that are not rows, are refused with their place.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from ds_distill.data import sources
from ds_distill.data.charset import count_characters
from ds_distill.data.csv_rows import CsvRows, format_columns
from ds_distill.data.hub_sets import hub_set
from ds_distill.data.named_rows import AMBIGUOUS, make_row
from ds_distill.data.opening import open_unpacked, unreadable
from ds_distill.data.parquet_pages import largest_page
from ds_distill.data.read_warnings import Findings
from ds_distill.data.remote import corpus_file
from ds_distill.data.sources import WorkUnit, arrow_batches, has_end, open_parquet
from ds_distill.utils.errors import UserError

# A page is unpacked as a whole; 1,024 rows of books, which pyarrow writes into one page, have such sizes.
_LARGEST_PAGE = 2**29
_BATCH_BYTES = 2**25
_KINDS = {list: "a list", dict: "an object", bool: "true or false", int: "a number", float: "a number"}


def open_piece(piece: WorkUnit, tick: Callable[[int], None]):
    """Open the bytes of a piece as an uncompressed stream; `tick` is called with the bytes read so far."""
    file = corpus_file(piece.path)
    return open_unpacked(file, file.suffix, piece.start, piece.stop, tick)


def read_jsonl(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of a piece of JSON lines."""
    with open_piece(piece, tick) as stream:
        number = 0
        while line := stream.readline(sources.LONGEST_ROW):
            number += 1
            where = f"{piece.path}, line {number}" + (f" after byte {piece.start}" if piece.start else "")
            if len(line) == sources.LONGEST_ROW and not line.endswith(b"\n"):
                if line.lstrip(b"\xef\xbb\xbf \t").startswith(b"["):
                    raise _json_array(piece, where)
                _skip_line(line, stream.readline, where, findings)
                continue
            text = line.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
            if not text.strip():
                continue
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
                raise _json_array(piece, where)
            if isinstance(row, dict) and row.get(piece.column) is AMBIGUOUS:
                raise UserError(
                    f"{where}: {piece.column!r} is given more than once, with different values; rename all but one"
                )
            if not isinstance(row, str) and (not isinstance(row, dict) or piece.column not in row):
                raise no_column(piece, where, list(row) if isinstance(row, dict) else [])
            yield _text(row if isinstance(row, str) else row[piece.column], piece, where)


def _json_array(piece: WorkUnit, where: str) -> UserError:
    return UserError(
        f"{where}: a JSON array; one JSON object per line is expected: jq -c '.[]' {piece.path} > NEW.jsonl"
    )


def read_csv(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of a csv or tsv piece."""
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in corpus_file(piece.path).suffixes] else ","
    binary = open_piece(piece, tick)
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
    file = corpus_file(piece.path)
    with file.open("rb", 1 << 16) as stream:
        table = open_parquet(file)
        paths = [table.schema.column(leaf).path for leaf in range(len(table.schema.names))]
        column = paths.index(piece.column)  # a struct before it may have a leaf of that name
        for number, group in enumerate(range(piece.start, piece.stop), 1):
            chunk = table.metadata.row_group(group).column(column)
            first = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)))
            try:
                page = largest_page(stream, first, first + chunk.total_compressed_size)
            except ValueError as error:
                raise unreadable(piece.path, error) from error
            if page > _LARGEST_PAGE:
                rows = table.metadata.row_group(group).num_rows
                findings.skip(
                    rows,
                    chunk.total_uncompressed_size,
                    f"{piece.path}, row group {group}: its {rows:,} rows are skipped, because a page of column "
                    f"{piece.column!r} unpacks to {page / 2**20:,.0f} MiB; write the file again with fewer rows per "
                    "group, such as row_group_size=100",
                )
            else:
                # A row, even one from the dictionary, is no longer than a page.
                size = min(256, max(1, _BATCH_BYTES // max(1, page)))
                for batch in table.iter_batches(batch_size=size, row_groups=[group], columns=[piece.column]):
                    yield from _column(batch.column(0), piece, findings)
            tick(piece.size * number // (piece.stop - piece.start))


def read_arrow(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of an Arrow file."""
    for batch in arrow_batches(Path(piece.path)):
        yield from _column(batch.column(batch.schema.names.index(piece.column)), piece, findings)
    if not has_end(Path(piece.path)):
        findings.remark("no end", f"{piece.path}: has no end mark, so it may be cut; compare it with its source")
    tick(piece.size)


def read_hub(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of each row of a piece of a hub data set."""
    data = hub_set(piece.path, piece.streaming).select_columns(piece.column)
    for number, row in enumerate(data.shard(num_shards=piece.stop, index=piece.start), 1):
        yield _text(row[piece.column], piece, f"{piece.path}, row {number} of part {piece.start + 1}")


def _column(array, piece: WorkUnit, findings: Findings) -> Iterator[str]:
    """Yield the texts of an Arrow array, whose type was checked before, one at a time."""
    for scalar in array:
        value = scalar.value if hasattr(scalar, "dictionary") else scalar
        data = value.as_buffer() if value is not None and value.is_valid else None
        if data is None:
            yield ""
        elif data.size > sources.LONGEST_ROW:
            _skip_row(count_characters(data), piece.path, findings)
        else:
            # The writer may not have checked what it declared as UTF-8, and older Spark and Impala write bytes.
            yield str(data, "utf-8", "surrogateescape")


def _skip_line(line: bytes, readline: Callable[[int], bytes], where: str, findings: Findings) -> None:
    """Skip the rest of a line of which `line` is the start."""
    characters = count_characters(line)
    while line and not line.endswith(b"\n"):
        line = readline(1 << 20)
        characters += count_characters(line)
    _skip_row(characters, where, findings)


def _skip_row(characters: int, where: str, findings: Findings) -> None:
    findings.skip(
        1,
        characters,
        f"{where}: a row of {characters:,} characters is skipped, because a row may have {sources.LONGEST_ROW >> 20} "
        "MiB at most; divide it into several rows",
    )


def _text(value, piece: WorkUnit, where: str) -> str:
    """Return a row's text.

    It is empty for null, and for NaN, which stands for null where rows went through pandas.
    """
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
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
