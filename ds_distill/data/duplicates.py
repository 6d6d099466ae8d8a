"""Documents that occur more than once in a corpus of any size, in bounded memory.

The documents' hashes are sorted into files by their first bits. Equal hashes meet in one file, so each can be looked at
alone.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ds_distill.data.document_hashes import HASH, DocumentHashes
from ds_distill.data.read_warnings import Findings
from ds_distill.data.readers import Document, read
from ds_distill.data.sources import WorkUnit
from ds_distill.utils.files import rename_finished

BUCKETS = 256
WAITING = 1 << 22  # rows in memory before they are written


class Buckets:
    """Rows of a structured dtype, divided by a number from 0 to 255 that is given for each.

    Args:
        folder: Takes the files, where there are more rows than fit in memory.
        dtype: The type of a row.
    """

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.dtype = folder, dtype
        self._rows: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self._count = 0

    def add(self, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Append rows [n], each to the bucket of its number in uint8 [n]."""
        self._rows.append(rows)
        self._numbers.append(numbers)
        self._count += len(rows)
        if self._count >= WAITING:
            self._write()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the rows, of one bucket or of several that were never written, in the order of their numbers."""
        if self.folder.is_dir():
            self._write()
            for file in sorted(self.folder.iterdir()):
                yield np.fromfile(file, self.dtype)
        elif self._rows:
            yield np.concatenate(self._rows)

    def _write(self) -> None:
        if not self._rows:
            return
        self.folder.mkdir(exist_ok=True)
        rows, numbers = np.concatenate(self._rows), np.concatenate(self._numbers)
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], np.arange(BUCKETS + 1))
        rows = rows[order]
        for number in np.flatnonzero(np.diff(ends)):
            with (self.folder / f"{number:03d}").open("ab") as file:
                file.write(rows[ends[number] : ends[number + 1]].tobytes())
        self._rows, self._numbers, self._count = [], [], 0


class DuplicateCounter:
    """A counter of documents that occurred before.

    Args:
        folder: A folder for temporary files; what an interrupted call has left there is removed.
    """

    def __init__(self, folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        self._folder = folder
        self._buckets = Buckets(folder, HASH)

    def add(self, hashes: np.ndarray) -> None:
        """Add the hashes of documents, HASH [n]."""
        self._buckets.add(hashes, _first_bits(hashes))

    def count(self) -> int:
        """Return how many of the documents are copies of others, and remove the files."""
        number = 0
        for rows in self._buckets:
            number += int(np.count_nonzero(_is_repeated(rows[np.lexsort((rows["low"], rows["high"]))])))
        shutil.rmtree(self._folder, ignore_errors=True)
        return number


def _first_bits(hashes: np.ndarray) -> np.ndarray:
    return (hashes["high"] >> np.uint64(56)).astype(np.uint8)


def _is_repeated(rows: np.ndarray) -> np.ndarray:
    """Return, for sorted rows with a hash, whether each has the hash of the row before it."""
    repeated = np.zeros(len(rows), bool)
    repeated[1:] = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    return repeated


# --- dropping --------------------------------------------------------------------------------------------------------

HASHES, COPIES = "hashes", "copies"  # folders beside those of the pieces: of all documents, and of those to drop
_PLACE = [("piece", "<u4"), ("document", "<u4")]  # of a document: its piece, and its number in that piece
_EMPTY = np.frombuffer(hashlib.blake2b(b"\n", digest_size=HASH.itemsize).digest(), HASH)[0]


class PieceHasher:
    """A worker that writes the hash of every document of a piece, HASH [documents], into a file."""

    def __init__(self, seed: int):
        self._seed = seed

    def __call__(self, piece: WorkUnit, file: Path, tick: Callable[[int], None] = lambda _: None) -> None:
        hashes = DocumentHashes(self._seed)
        for document in read(piece, tick):
            hashes.add(document)
            hashes.keep()
        partial = file.with_name(f"{file.name}-{uuid.uuid4().hex}.partial")
        with partial.open("wb") as stream:
            np.save(stream, hashes.finish())
        partial.replace(file)


def later_copies(piece_folder: Path) -> Path:
    """Return the file with the numbers of a piece's documents that are dropped; there is none where none is."""
    return piece_folder.parent / COPIES / f"{piece_folder.name}.npy"


def write_later_copies(hash_files: list[Path], folder: Path) -> None:
    """Write, for each piece, the numbers of its documents that occurred before in the corpus, in a uint32 file.

    Args:
        hash_files: What `PieceHasher` wrote, in the order of the corpus; the files written are called like them.
        folder: The folder to write. It is complete or absent, and may exist already.
    """
    partial = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}.partial")
    partial.mkdir()
    documents = Buckets(partial / "documents", np.dtype(HASH.descr + _PLACE))
    for number, file in enumerate(hash_files):
        hashes = np.load(file)
        rows = np.empty(len(hashes), documents.dtype)
        rows["high"], rows["low"], rows["piece"] = hashes["high"], hashes["low"], number
        rows["document"] = np.arange(len(rows))
        rows = rows[hashes != _EMPTY]
        documents.add(rows, _first_bits(rows))
    copies = Buckets(partial / "copies", np.dtype(_PLACE))
    for rows in documents:
        rows = rows[np.lexsort((rows["document"], rows["piece"], rows["low"], rows["high"]))]
        later = rows[_is_repeated(rows)][["piece", "document"]].astype(copies.dtype)
        copies.add(later, (later["piece"].astype(np.uint64) * BUCKETS // len(hash_files)).astype(np.uint8))
    for rows in copies:
        rows = rows[np.lexsort((rows["document"], rows["piece"]))]
        starts = np.flatnonzero(np.diff(rows["piece"].astype(np.int64), prepend=-1))
        for part in np.split(rows, starts[1:]):
            if len(part):
                np.save(partial / hash_files[part["piece"][0]].name, part["document"])
    for unneeded in (documents.folder, copies.folder):
        shutil.rmtree(unneeded, ignore_errors=True)
    rename_finished(partial, folder)


def without(documents: Iterable[Document], dropped: Path, findings: Findings) -> Iterator[Document]:
    """Yield the documents of a piece but for those whose numbers are in the file `dropped`, if there is one.

    The findings take the characters of those, and how many there were.
    """
    numbers = set(np.load(dropped).tolist()) if dropped.is_file() else set()
    number = -1
    for document in documents:
        number += not document.continues
        if number not in numbers:
            yield document
            continue
        findings.characters["duplicates"] += len(document.text)
        findings.dropped += not document.continues
