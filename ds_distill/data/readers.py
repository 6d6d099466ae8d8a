"""The documents of a piece, cut to size, with their characters counted and their faults noted."""

from __future__ import annotations

import csv
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from ds_distill.data import rows, sources
from ds_distill.data.charset import replace_surrogates
from ds_distill.data.opening import read_head, unreadable
from ds_distill.data.read_warnings import Findings
from ds_distill.data.remote import corpus_file
from ds_distill.data.sources import WorkUnit, split_inputs

Item = TypeVar("Item")
# The inputs that are read in turn, the files of each, and the pieces of each file: a system allows about 1,000 open
# files. Of more, those that are read first are spread evenly.
_INPUTS, _FILES, _PIECES = 32, 8, 2
_OTHER_ENDS = {
    "\r": "lone carriage returns",
    "\f": "form feeds",
    "\u2028": "U+2028",
    "\u2029": "U+2029",
    "\x85": "U+0085",
}


@dataclass(frozen=True)
class Document:
    """A document and its faults.

    Args:
        text: The document's text.
        bad_utf8: Whether bytes that are not UTF-8 were replaced.
        cut: Whether it is a part of a longer document.
        continues: Whether it is a further part of the document before it.
    """

    text: str
    bad_utf8: bool = False
    cut: bool = False
    continues: bool = False


def documents(inputs: list[str]) -> Iterator[str]:
    """Return an iterator over the texts of `inputs`, in order.

    The inputs are checked at the call, before anything is read.
    """
    pieces = split_inputs(inputs)
    return (document.text for piece in pieces for document in read(piece) if document.text)


def documents_in_turn(inputs: list[str]) -> Iterator[tuple[int, str]]:
    """Return an iterator over (the number of an input, a text of it), the inputs in turn, and so the files of each.

    This is for readers that stop early, who would see only the first file otherwise.
    """
    by_input: dict[int, dict[str, list[WorkUnit]]] = {}
    for piece in split_inputs(inputs):
        by_input.setdefault(piece.source, {}).setdefault(piece.path, []).append(piece)
    return _in_turn([_files_in_turn(files) for files in by_input.values()], _INPUTS)


def _files_in_turn(files: dict[str, list[WorkUnit]]) -> Iterator[tuple[int, str]]:
    of_files = [_in_turn([_numbered_texts(piece) for piece in pieces], _PIECES) for pieces in files.values()]
    return _in_turn(of_files, _FILES)


def _numbered_texts(piece: WorkUnit) -> Iterator[tuple[int, str]]:
    return ((piece.source, document.text) for document in read(piece) if document.text)


def _in_turn(iterators: list[Iterator[Item]], most: int) -> Iterator[Item]:
    """Yield an item of each of at most so many iterators in turn, spread over the list.

    Another one takes the place of one that has ended.
    """
    count = min(most, len(iterators))
    first = [number * len(iterators) // count for number in range(count)]
    later = sorted(set(range(len(iterators))) - set(first))
    waiting = (iterators[number] for number in later)
    opened = deque(iterators[number] for number in first)
    while opened:
        iterator = opened.popleft()
        try:
            item = next(iterator)
        except StopIteration:
            opened.extend(islice(waiting, 1))
            continue
        yield item
        opened.append(iterator)


def read(
    piece: WorkUnit, tick: Callable[[int], None] = lambda _: None, findings: Findings | None = None
) -> Iterator[Document]:
    """Yield the documents of a piece, in order; an empty document has an empty text.

    In text files, documents are separated by blank lines, and their lines stay lines. In other
    files, each row is a document. A long document comes in parts. Bad UTF-8 is replaced.

    Args:
        piece: The piece to read.
        tick: Called with the bytes of the piece read so far.
        findings: Takes the number of characters read and how many of them are in no document: white
            space at the ends of documents and between them, carriage returns before line ends, and
            byte-order marks. It also takes remarks on text that is hardly meant that way.

    Raises:
        UserError: If a file is damaged, or a column does not exist or holds no text.
    """
    findings = Findings() if findings is None else findings
    characters = outside = 0
    try:
        if piece.kind in ("text", "jsonl", "csv") and not piece.start:
            _remark_on_head(piece, findings)
        for text, continues in _texts(piece, findings, tick):
            clean = replace_surrogates(text)
            text, bad = clean, clean is not text
            whole = text.strip()
            parts = list(_cut(whole)) if len(whole) > sources.DOCUMENT_CHARACTERS else [whole]
            characters += len(text)
            outside += len(text) - sum(map(len, parts))
            for number, part in enumerate(parts):
                yield Document(part, bad, continues or len(parts) > 1, continues or number > 0)
    except (OSError, EOFError, zlib.error, csv.Error) as error:  # gzip.BadGzipFile and pyarrow's are OSErrors.
        raise unreadable(piece.path, error) from error
    # The reader of text files does its own counting, because it drops blank lines.
    findings.count(0 if piece.kind == "text" else characters, outside)


def _texts(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[tuple[str, bool]]:
    """Yield (text, whether it is a further part of the document before it)."""
    if piece.kind == "text":
        yield from _read_text(piece, findings, tick)
    else:
        yield from ((text, False) for text in _ROWS[piece.kind](piece, findings, tick))


def _read_text(piece: WorkUnit, findings: Findings, tick: Callable[[int], None]) -> Iterator[tuple[str, bool]]:
    lines, size, characters, outside, line_begins = [], 0, 0, 0, True
    longest, document_bytes, continues = sources.DOCUMENT_PARTS * sources.DOCUMENT_CHARACTERS, 0, False
    with rows.open_piece(piece, tick) as stream:
        while line := stream.readline(sources.DOCUMENT_CHARACTERS):
            line_ends = line.endswith(b"\n")
            while (
                not line_ends
                and len(line) < sources.DOCUMENT_CHARACTERS + 3
                and b"\x80" <= stream.peek(1)[:1] < b"\xc0"
            ):
                line += stream.read(1)  # The limit fell inside a character.
            text = line.decode("utf-8", "surrogateescape")
            characters += len(text)
            if text.startswith("\ufeff"):
                text, outside = text[1:], outside + 1
            blank = line_begins and not text.strip()
            line_begins = line_ends
            if blank:
                outside += len(text)
            else:
                lines.append(text)
                size += len(text)
                document_bytes += len(line)
            if lines and (blank or size >= 4 * sources.DOCUMENT_CHARACTERS):
                # A document that will be cut anyway need not be read whole, but none of its words
                # is cut.
                joined = "".join(lines)
                whole = joined.replace("\r\n", "\n")
                outside += len(joined) - len(whole)
                end = len(whole) if blank else max(whole.rfind(" "), whole.rfind("\n")) + 1 or len(whole)
                yield whole[:end], continues
                lines, size = [whole[end:]] if end < len(whole) else [], len(whole) - end
                continues = True
            if blank or document_bytes >= longest:
                # `_cuts` may have divided a file there, so a longer text is no document here either.
                document_bytes, continues = 0, False
    joined = "".join(lines)
    whole = joined.replace("\r\n", "\n")
    findings.count(characters, outside + len(joined) - len(whole))
    if lines:
        yield whole, continues


def _remark_on_head(piece: WorkUnit, findings: Findings) -> None:
    """Remark on mistakes, visible in a file's first bytes, that lose nothing but are hardly meant."""
    path = corpus_file(piece.path)
    data = read_head(path, path.suffix)
    head = data.decode(errors="replace")
    if not head:
        findings.remark("empty files", f"{path}: the file is empty")
    if piece.kind != "text":
        return
    line = head.strip().split("\n", 1)[0]
    if line.startswith('{"') and line.rstrip().endswith("}"):
        findings.remark(
            "JSON as text",
            f"{path}: JSON objects are read as plain text, keys and braces included; rename the file to end in .jsonl "
            "to read one of its columns",
        )
    if re.search("\n[\u200b\u2060\ufeff]+\r?\n", head):
        findings.remark(
            "lines that look blank",
            f"{path}: lines that look blank contain zero-width characters and therefore do not separate documents; "
            "remove those characters",
        )
    if not re.search(r"\n\s*\n", head):
        counts = {name: head.count(end) for end, name in _OTHER_ENDS.items()} | {
            "lone carriage returns": head.count("\r") - head.count("\r\n")
        }
        name = max(counts, key=counts.__getitem__)
        if counts[name] > max(1, head.count("\n")):
            findings.remark(
                "line ends",
                f"{path}: there is no blank line, so this is one document; {name} do not count as line breaks; "
                "replace each with one line break, or with two to separate documents",
            )
        elif len(data) >= 2**16:  # The file has more.
            longest = sources.DOCUMENT_PARTS * sources.DOCUMENT_CHARACTERS / 10**6
            findings.remark(
                "no blank lines",
                f"{path}: there is no blank line in its first 64 KiB, so every {longest:g} MB of its lines are one "
                "document, which is held out or trained on as a whole; put a blank line between documents, or write "
                "one JSON string per line into a .jsonl file",
            )


def _cut(text: str) -> Iterator[str]:
    """Yield the parts of a long document, cut at the end of a line or, failing that, of a word."""
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


_ROWS = {
    "jsonl": rows.read_jsonl,
    "csv": rows.read_csv,
    "parquet": rows.read_parquet,
    "arrow": rows.read_arrow,
    "hub": rows.read_hub,
}
