"""Prepared token blocks on disk, memory-mapped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_distill.errors import UserError


@dataclass(frozen=True)
class TokenStore:
    """One split of a prepared folder.

    blocks: [n, L], read only, uint16 or uint32.  token_counts: int64 [V], always of the train split.
    """

    path: Path
    split: str
    manifest: dict[str, Any]
    blocks: np.ndarray
    token_counts: np.ndarray

    @classmethod
    def open(cls, path: str | Path, split: str = "train") -> TokenStore:
        """Map `split` ("train" or "heldout"); UserError for missing files or a size that the manifest does not foretell."""
        path = Path(path)
        manifest_file = path / "manifest.json"
        try:
            manifest = json.loads(manifest_file.read_text())
            length, blocks, dtype = manifest["sequence_length"], manifest["blocks"], np.dtype(manifest["dtype"])
        except FileNotFoundError as error:
            raise UserError(f"{path}: no prepared data here (manifest.json is missing); prepare the corpus first") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{manifest_file}: not a manifest of prepared data ({error}); prepare the corpus again") from error
        if split not in blocks:
            raise UserError(f"{path}: no split named {split!r}; it has {', '.join(blocks)}")
        file = path / f"{split}.bin"
        shape = (blocks[split], length)
        expected = shape[0] * length * dtype.itemsize
        found = file.stat().st_size if file.exists() else None
        if found != expected:
            state = "the file is missing" if found is None else f"found {found:,} bytes"
            raise UserError(f"{file}: expected {expected:,} bytes ({shape[0]:,} blocks of {length}), {state}; prepare the corpus again")
        try:
            counts = np.load(path / "token_counts.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path / 'token_counts.npy'}: missing or damaged ({error}); prepare the corpus again") from error
        if counts.shape != (manifest["vocab_size"],):
            raise UserError(f"{path / 'token_counts.npy'}: expected {manifest['vocab_size']} counts, found shape {counts.shape}; "
                            "prepare the corpus again")
        # An empty file cannot be mapped.
        mapped = np.memmap(file, dtype, "r", shape=shape) if shape[0] else np.empty(shape, dtype)
        return cls(path, split, manifest, mapped, counts)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Real tokens, [CLS] and [SEP] included, of each block: int64, the shape of `indices`.

        Reads no block: only the last may be short.
        """
        indices = np.asarray(indices)
        count, length = self.blocks.shape
        lengths = np.full(indices.shape, length, np.int64)
        lengths[indices == count - 1] = self.manifest["real_tokens"][self.split] - (count - 1) * length
        return lengths
