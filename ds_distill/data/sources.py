"""The sources of the user's text: files of every usual kind, folders, patterns and hub data sets.

They are divided into pieces that a worker can read alone.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ds_distill.data.charset import check_text
from ds_distill.data.files import (
    COMPRESSED_SUFFIXES,
    FILE_FORMATS,
    UNSUPPORTED_SUFFIXES,
    get_file_kind,
    resolve_files,
    saved_split,
)
from ds_distill.data.hub_sets import hub_parts, resolve_hub_set
from ds_distill.data.opening import unreadable
from ds_distill.data.pipes import get_copy_digest
from ds_distill.data.remote import RemoteFile, file_state, is_url
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.git_lfs import check_not_lfs_pointer

PIECE_BYTES = 32 * 2**20
# A longer document is read in parts, all of which are on the same side of the held-out split.
DOCUMENT_CHARACTERS = 100_000
# A text file that has no blank line for so many times as many bytes is a list of lines, not a document.
DOCUMENT_PARTS = 40
# bytes of a row, and characters of a csv row; longer ones are skipped, or refused in a csv
LONGEST_ROW = 16 * 2**20
_ARROW_FILE = b"ARROW1"  # how a file of Arrow's file format begins and ends


@dataclass(frozen=True)
class WorkUnit:
    """A piece that one worker reads alone.

    It covers bytes [start, stop) of a file, row groups [start, stop) of a parquet file, or shard
    `start` of the `stop` shards of a hub data set.

    Args:
        source: The number of the input that the piece comes from.
        size: Its bytes, for progress.
        streaming: Whether a hub data set is streamed.
    """

    source: int
    path: str
    kind: str
    column: str
    start: int
    stop: int
    size: int
    streaming: bool = True


def split_inputs(inputs: list[str], *, column: str = "text", streaming: bool = True) -> list[WorkUnit]:
    """Return the pieces of files, folders, patterns and hub data sets.

    The files are text, jsonl, csv, tsv or parquet, and may be .gz or .zst. They may be URLs of a
    file system that fsspec knows. A file of rows may name
    its column, as in `FILE#COLUMN`. A hub data set is `hf:NAME[:CONFIG][@SPLIT][#COLUMN]`, where
    NAME may be a folder. The same inputs give the same pieces, whatever the number of workers.

    Raises:
        UserError: If a path, pattern or folder yields no file.
    """
    pieces = []
    for source, given in enumerate(inputs):
        if given.startswith("hf:"):
            pieces += _hub_pieces(source, given, column, streaming)
            continue
        name, named_column = _split_column(given)
        for file in resolve_files(name, named_column):
            pieces += _file_pieces(source, file, named_column or column)
    if not pieces:
        raise UserError("no corpus was given; name at least one file, folder, pattern or hf: data set")
    return pieces


def check_inputs(inputs: list[str]) -> None:
    """Raise UserError for a path, pattern or folder that yields no file.

    Unlike `split_inputs`, this neither looks into the files nor asks the hub.
    """
    for given in inputs:
        if given.startswith("hf:"):
            hub_parts(given)
        else:
            resolve_files(*_split_column(given))


def check_weights(weights: list[float], sources: int) -> None:
    """Raise UserError unless data.weights has one number, at least 0, for each source."""
    if len(weights) != sources or min(weights) < 0:
        raise UserError(
            f"data.weights = {weights}: must be one number, at least 0, for each of the corpus's {sources} sources"
        )


def corpus_identity(inputs: list[str], pieces: list[WorkUnit]) -> list[list]:
    """Return what tells one corpus from another, with one entry per input.

    An entry holds the input as an absolute path, the bytes that were found there, and the column
    that is read, unless it is the usual one or the input names it.
    """
    identity = []
    for source, given in enumerate(inputs):
        source_pieces = [piece for piece in pieces if piece.source == source]
        columns = {
            piece.column for piece in source_pieces if piece.kind != "text" and not given.endswith(f"#{piece.column}")
        } - {"text"}
        # The number of a pipe does not identify its content, but the digest does.
        piped = next((digest for piece in source_pieces if (digest := get_copy_digest(piece.path))), None)
        is_path = not given.startswith("hf:") and not is_url(given)
        where = f"pipe {piped}" if piped else str(expand_user(given).absolute()) if is_path else given
        identity.append([where, sum(piece.size for piece in source_pieces), *sorted(columns)])
    return identity


def _split_column(given: str) -> tuple[str, str | None]:
    """Return (path, the column that it names, or None) of an input that is not a hub data set."""
    name, mark, column = given.rpartition("#")
    if not mark or (not is_url(given) and expand_user(given).exists()):
        return given, None
    if not name.strip() or not column.strip():
        what = "there is no file before the #" if column.strip() else "there is no column after the #"
        raise UserError(f"{given}: {what}; write FILE#COLUMN, and check that its shell variables are set")
    # The # of `data#v2/*.txt` belongs to the name of a folder.
    is_path = (is_url(name) or not expand_user(name).is_file()) and re.search(r"[/*?\[]", column)
    return (given, None) if is_path else (name, column)


def _file_pieces(source: int, file: Path | RemoteFile, column: str) -> list[WorkUnit]:
    kind, size = get_file_kind(file.name) or "text", file_state(file)[0]
    if isinstance(file, Path):
        check_not_lfs_pointer(file)
    elif kind == "arrow":
        raise UserError(f"{file}: an Arrow file is read from a disk only; copy it to one, or write parquet")
    if file.suffix.lower() in UNSUPPORTED_SUFFIXES:
        raise UserError(f"{file}: not text; supported files are {', '.join(FILE_FORMATS)}, plain, .gz or .zst")
    if kind == "parquet":
        table = open_parquet(file)
        groups = table.num_row_groups
        _check_column(file, table.schema_arrow, column)
        step = max(1, round(groups * PIECE_BYTES / max(size, 1)))
        cuts = [*range(0, groups, step), groups]
        return [WorkUnit(source, str(file), kind, column, a, b, size * (b - a) // groups) for a, b in pairwise(cuts)]
    if kind == "arrow":
        _check_column(file, _arrow_reader(Path(str(file))).schema, column)
        return [WorkUnit(source, str(file), kind, column, 0, 1, size)]
    try:
        check_text(file, file.suffix)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(file, error) from error
    # A quoted field of a csv may hold anything, line ends included.
    whole = file.suffix.lower() in COMPRESSED_SUFFIXES or kind == "csv"
    cuts = [0, *([] if whole else _cuts(file, size, kind)), size]
    return [WorkUnit(source, str(file), kind, column, a, b, b - a) for a, b in pairwise(cuts)]


def _cuts(file: Path | RemoteFile, size: int, kind: str) -> list[int]:
    """Return offsets about PIECE_BYTES apart at which a document starts."""
    cuts: list[int] = []
    with file.open("rb", 1 << 18) as stream:
        target = PIECE_BYTES
        while target < size:
            stream.seek(target)
            while (line := stream.readline(1 << 20)) and not line.endswith(b"\n"):
                pass  # Skip the rest of a line, however long.
            while kind == "text" and line and stream.tell() < target + DOCUMENT_PARTS * DOCUMENT_CHARACTERS:
                line = stream.readline(1 << 20)
                if not line.strip():
                    break
            if not line or stream.tell() >= size:
                break
            if not line.endswith(b"\n"):
                target = stream.tell()
                continue
            cuts.append(stream.tell())
            target = cuts[-1] + PIECE_BYTES
    return cuts


def open_parquet(file: Path | RemoteFile):
    """Open a parquet file; raise UserError if it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        opened = file if isinstance(file, Path) else file.open("rb")
        # Without a buffer, the compressed bytes of a whole row group would be read at once.
        return pyarrow.parquet.ParquetFile(opened, buffer_size=1 << 20)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def _arrow_reader(file: Path):
    """Return a reader of Arrow's stream format, in which `datasets` writes, or of its file format."""
    import pyarrow

    try:
        source = pyarrow.memory_map(str(file))
        if source.read(6) == _ARROW_FILE:
            return pyarrow.ipc.open_file(source)
        source.seek(0)
        return pyarrow.ipc.open_stream(source)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def arrow_batches(file: Path) -> Iterator:
    """Yield the record batches of an Arrow file, memory-mapped rather than read.

    Raises:
        UserError: The file is damaged.
    """
    import pyarrow

    reader = _arrow_reader(file)
    try:
        if hasattr(reader, "num_record_batches"):
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from reader
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(file, error) from error


def has_end(file: Path) -> bool:
    """Return whether an Arrow file ends as its writers end it; readers also take a stream that is cut between batches.

    Source: Arrow's columnar format, "IPC Streaming Format".
    """
    with file.open("rb") as stream:
        stream.seek(-min(8, file.stat().st_size), os.SEEK_END)
        return stream.read().endswith((_ARROW_FILE, b"\xff\xff\xff\xff\0\0\0\0"))


def _check_column(file: Path | RemoteFile, schema, column: str) -> None:
    """Raise UserError unless a file of Arrow types has exactly one such column, and it holds text."""
    from pyarrow import types

    if schema.names.count(column) != 1:
        how = "no" if column not in schema.names else "more than one"
        raise UserError(
            f"{file}: {how} column {column!r}; the columns are {', '.join(schema.names) or 'none'}; choose one: "
            f"{file}#COLUMN"
        )
    kind = schema.field(column).type
    inner = kind.value_type if types.is_dictionary(kind) else kind
    if not re.fullmatch(r"(large_)?(string|binary)(_view)?|fixed_size_binary.*|null", str(inner)):
        what = "lists" if "list" in str(inner) else "objects" if types.is_nested(inner) else f"{inner} values"
        raise UserError(
            f"{file}: column {column!r} contains {what}, not text; make it one string per row, or choose another "
            f"column: {file}#COLUMN"
        )


def _hub_pieces(source: int, given: str, column: str, streaming: bool) -> list[WorkUnit]:
    parts = hub_parts(given)
    named = parts["column"] or column
    if (local := expand_user(parts["name"])).is_dir() and (saved := saved_split(local, parts["split"])):
        return [piece for file in saved for piece in _file_pieces(source, file, named)]
    data = resolve_hub_set(given, streaming)
    names = data.column_names or list(next(iter(data), {}))
    if named not in names:
        raise UserError(f"{given}: no column {named!r}; the columns are {', '.join(names)}; choose one: hf:NAME#COLUMN")
    shards = data.num_shards if streaming else max(1, len(data) // 100_000)
    return [WorkUnit(source, given, "hub", named, shard, shards, 0, streaming) for shard in range(shards)]
