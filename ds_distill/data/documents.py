"""The documents of a piece: text, rows of JSON, csv and parquet files, and of hub data sets."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ds_distill.data import sources
from ds_distill.data.sources import Piece, open_hub, open_parquet, pieces_of
from ds_distill.errors import UserError


@dataclass(frozen=True)
class Document:
    """text, and what was found wrong with it: bad_utf8 (replaced), cut (a part of a longer document)."""

    text: str
    bad_utf8: bool = False
    cut: bool = False


def documents(inputs: list[str]) -> Iterator[str]:
    """The texts of `inputs`, in order; checks them at the call, before anything is read."""
    pieces = pieces_of(inputs)
    return (document.text for piece in pieces for document in read(piece) if document.text)


def read(piece: Piece, tick: Callable[[int], None] = lambda _: None) -> Iterator[Document]:
    """The documents of a piece, in order; one that is empty comes with an empty text. tick: called with the bytes of the piece read so far.

    Text files: documents are separated by blank lines, their lines stay lines. Others: a row is a document. Bad UTF-8 is replaced.
    Raises UserError for a damaged file and for a column that is not there.
    """
    try:
        for text, bad in _READERS[piece.kind](piece, tick):
            text = text.strip()
            try:
                text.encode()
            except UnicodeEncodeError:  # half a surrogate pair, as JSON escapes may hold
                text, bad = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True
            parts = list(_cut(text)) if len(text) > sources.DOCUMENT_CHARACTERS else [text]
            for part in parts:
                yield Document(part, bad, len(parts) > 1)
    except (OSError, EOFError, zlib.error, csv.Error) as error:  # gzip.BadGzipFile and pyarrow's are OSErrors
        raise UserError(f"{piece.path}: cannot be read ({error}); replace the file or leave it out") from error


class _Counting(io.RawIOBase):
    """A byte stream that ends at `stop` and reports how far the file under it was read."""

    def __init__(self, piece: Piece, tick: Callable[[int], None]):
        self.file, self.piece, self.tick = open(piece.path, "rb"), piece, tick
        self.file.seek(piece.start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.file.read(min(len(buffer), self.piece.stop - self.file.tell()))
        self.tick(self.file.tell() - self.piece.start)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def _open(piece: Piece, tick: Callable[[int], None]) -> BinaryIO:
    raw = io.BufferedReader(_Counting(piece, tick), 1 << 18)
    packed = Path(piece.path).suffix.lower()
    if packed == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if packed == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 18)
    return raw


def _decode(line: bytes) -> tuple[str, bool]:
    try:
        return line.decode(), False
    except UnicodeDecodeError:
        return line.decode(errors="replace"), True


def _read_text(piece: Piece, tick) -> Iterator[tuple[str, bool]]:
    lines, size, bad = [], 0, False
    with _open(piece, tick) as stream:
        while line := stream.readline(sources.DOCUMENT_CHARACTERS):
            while not line.endswith(b"\n") and b"\x80" <= stream.peek(1)[:1] < b"\xc0":
                line += stream.read(1)  # the limit fell inside a character
            text, wrong = _decode(line)
            text, bad = text.removeprefix("\ufeff"), bad or wrong
            if text.strip():
                lines.append(text)
                size += len(text)
            if lines and (not text.strip() or size >= 4 * sources.DOCUMENT_CHARACTERS):
                # a document that will be cut anyway need not be read whole, but none of its words is cut
                whole = "".join(lines).replace("\r\n", "\n")
                end = max(whole.rfind(" "), whole.rfind("\n")) + 1 if text.strip() else len(whole)
                yield whole[: end or len(whole)], bad
                lines, bad = [whole[end:]] if 0 < end < len(whole) else [], False
                size = sum(map(len, lines))
    if lines:
        yield "".join(lines).replace("\r\n", "\n"), bad


def _read_jsonl(piece: Piece, tick) -> Iterator[tuple[str, bool]]:
    with _open(piece, tick) as stream:
        for number, line in enumerate(stream, 1):
            text, bad = _decode(line.removeprefix(b"\xef\xbb\xbf"))
            if not text.strip():
                continue
            where = f"{piece.path}, line {number}" + (f" after byte {piece.start}" if piece.start else "")
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not JSON ({error}); one JSON object a line is expected") from error
            if isinstance(row, list):
                raise UserError(f"{where}: a JSON array; one JSON object a line is expected")
            yield _column(row, piece.column, where, piece), bad


def _read_csv(piece: Piece, tick) -> Iterator[tuple[str, bool]]:
    csv.field_size_limit(1 << 30)
    with io.TextIOWrapper(_open(piece, tick), encoding="utf-8-sig", errors="replace", newline="") as stream:
        tabs = ".tsv" in [suffix.lower() for suffix in Path(piece.path).suffixes]
        rows = csv.DictReader(stream, delimiter="\t" if tabs else ",")
        for number, row in enumerate(rows, 1):
            text = _column(row, piece.column, f"{piece.path}, row {number}", piece)
            yield text, "\ufffd" in text


def _read_parquet(piece: Piece, tick) -> Iterator[tuple[str, bool]]:
    table = open_parquet(Path(piece.path))
    names = table.schema_arrow.names
    if piece.column not in names:
        raise _no_column(piece, piece.path, names)
    for number, group in enumerate(range(piece.start, piece.stop), 1):
        for batch in table.iter_batches(batch_size=256, row_groups=[group], columns=[piece.column]):
            for text in batch.column(0).to_pylist():
                yield text if isinstance(text, str) else "", False
        tick(piece.size * number // (piece.stop - piece.start))


def _column(row, column: str, where: str, piece: Piece) -> str:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict) or column not in row:
        raise _no_column(piece, where, list(row) if isinstance(row, dict) else [])
    return row[column] if isinstance(row[column], str) else ""


def _no_column(piece: Piece, where: str, names: list) -> UserError:
    return UserError(f"{where}: no column {piece.column!r}, it has {', '.join(map(str, names)) or 'none'}; choose one: {piece.path}#COLUMN")


def _cut(text: str) -> Iterator[str]:
    """A long document's parts, cut at the end of a line or, failing that, of a word."""
    start = 0
    while len(text) - start > sources.DOCUMENT_CHARACTERS:
        stop = start + sources.DOCUMENT_CHARACTERS
        end = max(text.rfind("\n", start + 1, stop), start) or start
        if end == start:
            end = text.rfind(" ", start + 1, stop)
        if end <= start:
            end = stop
        yield text[start:end].strip()
        start = end
    yield text[start:].strip()


def _read_hub(piece: Piece, tick) -> Iterator[tuple[str, bool]]:
    data = open_hub(piece.path, piece.streaming).select_columns(piece.column)
    for row in data.shard(num_shards=piece.stop, index=piece.start):
        text = row[piece.column]
        yield text if isinstance(text, str) else "", False


_READERS = {"text": _read_text, "jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet, "hub": _read_hub}
