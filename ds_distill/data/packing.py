"""Packing of documents into sequences of limited length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ds_distill.data.shards import ShardWriter


class Packer:
    """A packer of documents into full blocks [CLS] body [SEP] of one length.

    As in RoBERTa's full-sentences, documents in the body are separated by [SEP]. A block never
    begins with a separator: the [CLS] before it separates as well.
    """

    def __init__(self, writer: ShardWriter, length: int, cls_id: int, sep_id: int):
        self.writer, self.body = writer, length - 2
        self.cls, self.sep = np.array([cls_id]), np.array([sep_id])
        self._waiting: list[np.ndarray] = []
        self._count = 0

    def add(self, ids: np.ndarray) -> None:
        """Append a document, or the ids that another packer left over, which may be several documents."""
        ends = np.flatnonzero(ids == self.sep)  # No text holds a separator.
        parts = np.split(ids, ends)
        for document in (parts[0], *(part[1:] for part in parts[1:])):
            if self._count % self.body:
                self._waiting.append(self.sep)
                self._count += 1
            self._waiting.append(document)
            self._count += len(document)
        if self._count >= 256 * self.body:
            self._write(last=False)

    def rest(self) -> np.ndarray:
        """Write the full blocks and return the ids left over, at most one block's body."""
        self._write(last=False)
        return np.concatenate(self._waiting) if self._waiting else np.empty(0, np.int64)

    def finish(self) -> None:
        """Write everything; the last block may be shorter."""
        self._write(last=True)

    def _write(self, last: bool) -> None:
        stream = np.concatenate(self._waiting) if self._waiting else np.empty(0, np.int64)
        full = len(stream) // self.body * self.body
        bodies = list(stream[:full].reshape(-1, self.body))
        rest = stream[full:]
        if last and len(rest):
            bodies.append(rest)
        self.writer.add([np.concatenate((self.cls, body, self.sep)) for body in bodies])
        self._waiting, self._count = ([rest] if len(rest) and not last else []), (0 if last else len(rest))


class LinePacker:
    """A packer that turns each line into a sequence [CLS] line [SEP] of at most `length` ids.

    Longer lines are divided into several sequences (the authors' data). Sequences of fewer than 12
    ids, and those with half or more unknown ids, are dropped. Both are counted, and their
    characters are counted in `lost`.
    """

    SHORT = 12

    def __init__(self, writer: ShardWriter, length: int, cls_id: int, sep_id: int, unknown_id: int | None):
        self.writer, self.body = writer, length - 2
        self.cls, self.sep, self.unknown_id = np.array([cls_id]), np.array([sep_id]), unknown_id
        self.short = self.unknown = 0
        self.lost: Counter[str] = Counter()

    def add(self, lines: Sequence[np.ndarray], characters: Sequence[int]) -> None:
        """Append the ids of lines.

        `characters` tells how many characters of each line are in them. A part of a divided line
        has its share of them by number of ids.
        """
        kept = []
        for line, count in zip(lines, characters, strict=True):
            if not len(line):
                self.lost["removed"] += count
            for start in range(0, len(line), self.body):
                ids = np.concatenate((self.cls, line[start : start + self.body], self.sep))
                if len(ids) < self.SHORT:
                    self.short += 1
                    self._lose("short_sequences", line, start, count)
                elif self.unknown_id is not None and 2 * np.count_nonzero(ids == self.unknown_id) >= len(ids):
                    self.unknown += 1
                    self._lose("unknown_sequences", line, start, count)
                else:
                    kept.append(ids)
        self.writer.add(kept)

    def _lose(self, cause: str, line: np.ndarray, start: int, characters: int) -> None:
        stop = min(start + self.body, len(line))
        self.lost[cause] += characters * stop // len(line) - characters * start // len(line)
