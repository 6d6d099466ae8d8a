"""Hashes of documents: which side of the held-out split each is on, and which are the same.

A long document comes in parts. Its side is its first part's, and its hash covers all of them, so it is never on both
sides, and nothing but the hash is kept while it is read.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ds_distill.data.readers import Document

HASH = np.dtype([("high", "<u8"), ("low", "<u8")])  # 128 bits: equal only for equal texts


class DocumentHashes:
    """The hashes of the documents of a piece, in order."""

    def __init__(self, seed: int):
        self._seed, self._side = seed, 0
        self._hashes = bytearray()
        self._open: hashlib.blake2b | None = None  # over the parts so far of the current document
        self._counts = False

    def add(self, document: Document) -> int:
        """Add a document or a part of one, and return 64 bits that decide the side of the whole document."""
        if not document.continues:
            self._close()
            self._side = hash_text(self._seed, document.text)
        if self._open is None:
            self._open = hashlib.blake2b(digest_size=HASH.itemsize)
        self._open.update(document.text.encode(errors="replace") + b"\n")
        return self._side

    def keep(self) -> None:
        """Keep the hash of the current document; that of a document without this call is dropped."""
        self._counts = True

    def finish(self) -> np.ndarray:
        """Return the kept hashes, as HASH [documents]."""
        self._close()
        return np.frombuffer(self._hashes, HASH)

    def _close(self) -> None:
        if self._open is not None and self._counts:
            self._hashes += self._open.digest()
        self._open, self._counts = None, False


def hash_text(seed: int, text: str) -> int:
    """Return 64 bits that (seed, text) alone decide; Python's own hash changes from run to run."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(errors="replace"), digest_size=8).digest(), "little")
