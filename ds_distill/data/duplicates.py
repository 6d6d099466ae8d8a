"""Documents that occur more than once in a corpus of any size, in bounded memory.

The documents' hashes are sorted into files by their first bits. Equal hashes meet in one file, so each can be looked at
alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ds_distill.data.document_hashes import HASH

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
        folder: A folder for temporary files, which does not exist.
    """

    def __init__(self, folder: Path):
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
