"""Prepared token sequences on disk, memory-mapped."""

from __future__ import annotations

import json
import resource
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ds_distill.config.renamed import MODE_LINES
from ds_distill.data.shards import INDEX
from ds_distill.utils.errors import UserError


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of prepared data; raise OSError, ValueError or KeyError where it is none."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest.get("mode") == "grouped":  # the name of an earlier version
        manifest["mode"] = MODE_LINES
    return manifest


@dataclass
class TokenDataset:
    """One split of a prepared folder: len(store) sequences of token ids, numbered shard by shard.

    Args:
        manifest: The manifest that `prepare` wrote.
        token_counts: int64 [V], always of the train split.
    """

    path: Path
    split: str
    manifest: dict[str, Any]
    token_counts: np.ndarray
    _ids: list[np.ndarray] = field(repr=False)  # the memory-mapped ids of each shard
    _rows: list[np.ndarray] = field(repr=False)  # the memory-mapped INDEX rows of each shard

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *map(len, self._rows)])

    @classmethod
    def open(cls, path: str | Path, split: str = "train") -> TokenDataset:
        """Memory-map `split` ("train" or "heldout") of a prepared folder.

        Raises:
            UserError: If files are missing, or a size differs from the one that the manifest
                implies.
        """
        path = Path(path)
        manifest_file = path / "manifest.json"
        try:
            manifest = read_manifest(path)
            shards, dtype, vocabulary = manifest["shards"], np.dtype(manifest["dtype"]), manifest["vocab_size"]
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: not a folder of prepared data (manifest.json is missing); prepare the corpus first"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{manifest_file}: not a valid manifest of prepared data ({error}); prepare the corpus again"
            ) from error
        if split not in shards:
            raise UserError(f"{path}: no split named {split!r}; it has {', '.join(shards)}")
        _allow_files(sum(map(len, shards.values())))
        ids = [_map(path / f"{shard['file']}.bin", dtype, shard["tokens"]) for shard in shards[split]]
        rows = [_map(path / f"{shard['file']}.idx", INDEX, shard["sequences"]) for shard in shards[split]]
        try:
            counts = np.load(path / "token_counts.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path / 'token_counts.npy'}: missing or damaged ({error}); prepare the corpus again"
            ) from error
        if counts.shape != (vocabulary,):
            raise UserError(
                f"{path / 'token_counts.npy'}: expected {vocabulary} counts, but the array has shape {counts.shape}; "
                "prepare the corpus again"
            )
        return cls(path, split, manifest, counts, ids, rows)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def sequence(self, index: int) -> np.ndarray:
        """Return the ids of one sequence, special tokens included: uint16 or uint32 [n].

        Raises:
            UserError: If the bytes are not those that were written.
        """
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = self._rows[shard][index - self._starts[shard]]
        start = int(row["start"])
        ids = self._ids[shard][start : start + int(row["length"])]
        if zlib.crc32(ids.tobytes()) != row["crc"]:
            name = self.manifest["shards"][self.split][shard]["file"]
            raise UserError(
                f"{self.path / name}.bin: damaged at byte {start * ids.itemsize:,} (checksum of sequence "
                f"{index - self._starts[shard]}); restore the file or prepare the corpus again"
            )
        return ids

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each sequence, special ones included.

        The result is int64 and has the shape of `indices`. No sequence is read.
        """
        return self._look_up(indices, "length")

    def maskable(self, indices: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each sequence that are not special.

        The result is int64 and has the shape of `indices`. No sequence is read.
        """
        return self._look_up(indices, "maskable")

    def sources(self) -> list[np.ndarray]:
        """Return the sequences of each source of the corpus, in order, as int64 arrays."""
        sequences: list[list[np.ndarray]] = [[] for _ in self.manifest["sources"]]
        for number, shard in enumerate(self.manifest["shards"][self.split]):
            sequences[shard["source"]].append(np.arange(self._starts[number], self._starts[number + 1]))
        return [np.concatenate(parts) if parts else np.empty(0, np.int64) for parts in sequences]

    def _look_up(self, indices: np.ndarray, column: str) -> np.ndarray:
        indices = np.asarray(indices)
        values = np.empty(indices.shape, np.int64)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards):
            in_shard = shards == shard
            values[in_shard] = self._rows[shard][column][indices[in_shard] - self._starts[shard]]
        return values


def _allow_files(shards: int) -> None:
    """Raise this process's soft limit of open files if it is near.

    A memory map keeps its file open, and each shard has two.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 4 * shards + 1024
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard)
        )


def _map(file: Path, dtype: np.dtype, count: int) -> np.ndarray:
    expected = count * dtype.itemsize
    size = file.stat().st_size if file.exists() else None
    if size != expected:
        state = "but the file is missing" if size is None else f"but the file has {size:,} bytes"
        raise UserError(f"{file}: expected {expected:,} bytes, {state}; restore the file or prepare the corpus again")
    return np.memmap(file, dtype, "r") if count else np.empty(0, dtype)  # An empty file cannot be mapped.
