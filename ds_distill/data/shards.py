"""Token sequences on disk: NAME.bin holds their ids one after the other, NAME.idx one row for each."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

# start: the first id's place in NAME.bin; length: the number of ids; maskable: the number of ids
# that are not special tokens; crc: the crc32 of the sequence's bytes
INDEX = np.dtype([("start", "<u8"), ("length", "<u4"), ("maskable", "<u4"), ("crc", "<u4")])


class ShardWriter:
    """A writer that appends sequences to one shard.

    Args:
        stem: The path of the shard's files without suffix.
        special: bool [V], true for special tokens.
        dtype: The type of the ids on disk.
    """

    def __init__(self, stem: Path, special: np.ndarray, dtype: np.dtype):
        self.stem, self.special, self.dtype = stem, special, dtype
        self.sequences = self.tokens = 0
        self.counts = np.zeros(len(special), np.int64)
        self.maskable: Counter[int] = Counter()  # how many sequences have so many maskable ids
        self._digest = hashlib.sha256()
        self._ids, self._rows = stem.with_suffix(".bin").open("wb"), stem.with_suffix(".idx").open("wb")

    def add(self, sequences: list[np.ndarray]) -> None:
        """Append each 1-D array of ids, special tokens included."""
        if not sequences:
            return
        lengths = np.array([len(ids) for ids in sequences])
        ids = np.concatenate(sequences).astype(self.dtype)
        ends = np.cumsum(lengths)
        maskable = np.concatenate(([0], np.cumsum(~self.special[ids])))
        rows = np.empty(len(sequences), INDEX)
        rows["start"], rows["length"] = self.tokens + ends - lengths, lengths
        rows["maskable"] = maskable[ends] - maskable[ends - lengths]
        self.maskable.update(rows["maskable"].tolist())
        data, size = memoryview(ids.tobytes()), self.dtype.itemsize
        rows["crc"] = [zlib.crc32(data[size * (end - n) : size * end]) for end, n in zip(ends, lengths, strict=True)]
        for stream, written in ((self._ids, data), (self._rows, rows.tobytes())):
            stream.write(written)
            self._digest.update(written)
        self.counts += np.bincount(ids, minlength=len(self.counts))
        self.sequences += len(sequences)
        self.tokens += len(ids)

    def close(self) -> dict:
        """Close the files and return the shard's entry in the manifest.

        The entry also has `maskable`: how many sequences have so many maskable ids.
        """
        self._ids.close()
        self._rows.close()
        return {
            "file": self.stem.name,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "sha256": self._digest.hexdigest(),
            "maskable": dict(self.maskable),
        }
