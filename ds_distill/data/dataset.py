"""Prepared token sequences on disk, memory-mapped."""

from __future__ import annotations

import mmap
import zlib
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ds_distill.data.token_files import LENGTHS, ROWS, open_manifest
from ds_distill.utils.errors import UserError
from ds_distill.utils.open_files import allow_open_files


class TokenDataset:
    """One split of a prepared folder: len(store) sequences of token ids, numbered source by source.

    A file is mapped when it is first used, and stays so. A pickled dataset is only its path and split.

    Attributes:
        path: The prepared folder.
        split: "train" or "heldout".
        manifest: The manifest that `prepare` wrote.
        token_counts: int64 [V], always of the train split.
    """

    def __init__(self, path: str | Path, split: str = "train"):
        """Open `split` of a prepared folder.

        Raises:
            UserError: If files are missing, or a size differs from the one that the manifest
                implies.
        """
        self.path, self.split = Path(path), split
        self.manifest: dict[str, Any] = open_manifest(self.path)
        if split not in self.manifest["shards"]:
            raise UserError(f"{path}: no split named {split!r}; it has {', '.join(self.manifest['shards'])}")
        self._shards = self.manifest["shards"][split]
        self._dtype = np.dtype(self.manifest["dtype"])
        self._size = sum(shard["sequences"] for shard in self._shards)
        self._first_ids = np.cumsum([0, *(shard["tokens"] for shard in self._shards)]).tolist()
        self._ids: list[np.ndarray | None] = [None] * len(self._shards)
        for shard in self._shards:
            _check_size(self._bin(shard["file"]), shard["tokens"] * self._dtype.itemsize)
        if self._size:
            for kind in (ROWS, LENGTHS):
                _check_size(self._flat(kind), self._size * kind.itemsize)
        self.token_counts = _read_token_counts(self.path, self.manifest["vocab_size"])

    @classmethod
    def open(cls, path: str | Path, split: str = "train") -> TokenDataset:
        """Open `split` of a prepared folder."""
        return cls(path, split)

    def __reduce__(self):
        return TokenDataset, (self.path, self.split)

    def __len__(self) -> int:
        return self._size

    def sequence(self, index: int) -> np.ndarray:
        """Return the ids of one sequence, special tokens included: uint16 or uint32 [n].

        Raises:
            UserError: If the bytes are not those that were written, or an id is not in the vocabulary.
        """
        first, crc = self._rows[index].item()
        shard = bisect_right(self._first_ids, first) - 1
        start = first - self._first_ids[shard]
        if not 0 <= shard < len(self._shards):  # a row that was damaged
            raise _damaged(f"{self._flat(ROWS)}: damaged at sequence {index:,}")
        ids = self._shard(shard)[start : start + int(self._lengths["length"][index])]
        if not len(ids) or zlib.crc32(ids.data) != crc:
            place = f"{self._bin(self._shards[shard]['file'])}: damaged at byte {start * self._dtype.itemsize:,}"
            raise _damaged(f"{place} (checksum of sequence {index:,})")
        # The checksum does not tell who wrote the ids. An id beyond the vocabulary would otherwise
        # end a run on a GPU later and elsewhere, without a word of its cause.
        if (largest := int(ids.max())) >= self.manifest["vocab_size"]:
            place = start + int(ids.argmax())
            raise UserError(
                f"{self._bin(self._shards[shard]['file'])}: token id {largest:,} at byte "
                f"{place * self._dtype.itemsize:,} (sequence {index:,}) is not in the vocabulary of "
                f"{self.manifest['vocab_size']:,} tokens; prepare the corpus again"
            )
        return ids

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each sequence, special ones included.

        The result is int64 and has the shape of `indices`. No sequence is read.
        """
        return self._lengths[np.asarray(indices)]["length"].astype(np.int64)

    def maskable(self, indices: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each sequence that are not special.

        The result is int64 and has the shape of `indices`. No sequence is read.
        """
        return self._lengths[np.asarray(indices)]["maskable"].astype(np.int64)

    def check_maskable(self, indices: np.ndarray, found: np.ndarray, expected: np.ndarray) -> None:
        """Raise UserError where what was found in sequences is not what their numbers of maskable tokens imply.

        Every rank counts the tokens of a global batch by these numbers, and a wrong one would change the losses.

        Args:
            indices: The sequences, int64 [B].
            found: The number of masked tokens in each, int64 [B].
            expected: The number that `maskable` leads to, int64 [B].
        """
        if (wrong := np.flatnonzero(found != expected)).size:
            raise _damaged(f"{self._flat(LENGTHS)}: damaged at sequence {int(indices[wrong[0]]):,}")

    def source_sizes(self) -> list[int]:
        """Return the number of sequences of each source of the corpus.

        Those of the first source come first, then those of the second, and so on.
        """
        return [source["sequences"][self.split] for source in self.manifest["sources"]]

    @cached_property
    def _lengths(self) -> np.ndarray:
        # Any batch needs many of them, and they are few bytes: reading ahead soon has them all in memory.
        return _map(self._flat(LENGTHS), LENGTHS, self._size)

    @cached_property
    def _rows(self) -> np.ndarray:
        return _map(self._flat(ROWS), ROWS, self._size, mmap.MADV_RANDOM)

    def _shard(self, number: int) -> np.ndarray:
        ids = self._ids[number]
        if ids is None:
            allow_open_files(len(self._shards))
            shard = self._shards[number]
            ids = self._ids[number] = _map(self._bin(shard["file"]), self._dtype, shard["tokens"], mmap.MADV_RANDOM)
        return ids

    def _bin(self, file: str) -> Path:
        return self.path / f"{file}.bin"

    def _flat(self, kind: np.dtype) -> Path:
        return self.path / f"{self.split}.{'rows' if kind is ROWS else 'lengths'}"


def _damaged(place: str) -> UserError:
    return UserError(f"{place}; restore the file or prepare the corpus again")


def _check_size(file: Path, expected: int) -> None:
    try:
        size = file.stat().st_size
    except FileNotFoundError:
        size = None
    if size != expected:
        state = "but the file is missing" if size is None else f"but the file has {size:,} bytes"
        raise UserError(f"{file}: expected {expected:,} bytes, {state}; restore the file or prepare the corpus again")


def _map(file: Path, dtype: np.dtype, count: int, advice: int = mmap.MADV_NORMAL) -> np.ndarray:
    """Memory-map a file of `count` values, with advice to the kernel.

    MADV_RANDOM has it read only the pages that are asked for. By default, it reads many around each
    of them, which for sequences in random order is hundreds of times as much.
    """
    if not count:  # An empty file cannot be mapped.
        return np.empty(0, dtype)
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    mapped.madvise(advice)
    return np.frombuffer(mapped, dtype, count)


def _read_token_counts(path: Path, vocabulary: int) -> np.ndarray:
    file = path / "token_counts.npy"
    try:
        counts = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: missing or damaged ({error}); prepare the corpus again") from error
    if counts.shape != (vocabulary,):
        raise UserError(
            f"{file}: expected {vocabulary} counts, but the array has shape {counts.shape}; prepare the corpus again"
        )
    return counts
