"""Documents to packed blocks of token ids on disk, complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from ds_distill.data.tokenizer import plain_backend, tokenizer_fingerprint
from ds_distill.errors import UserError

SPLITS = ("train", "heldout")
DOCUMENTS_A_BATCH = 1000


class _Packer:
    """Appends documents to one split's file as blocks [CLS] body [SEP]; documents are separated by [SEP] in the body."""

    def __init__(self, path: Path, length: int, dtype: np.dtype, vocab_size: int, cls_id: int, sep_id: int, pad_id: int):
        self.path, self.length, self.dtype = path, length, dtype
        self.cls_id, self.sep_id, self.pad_id = cls_id, sep_id, pad_id
        self.blocks = self.documents = self.real_tokens = 0
        self.counts = np.zeros(vocab_size, np.int64)
        self._pieces: list[np.ndarray] = []
        self._waiting = 0
        self._file = path.open("wb")

    def add(self, ids: list[int]) -> None:
        if self.documents:
            self._pieces.append(np.array([self.sep_id], self.dtype))
        self._pieces.append(np.array(ids, self.dtype))
        self._waiting += len(ids) + bool(self.documents)
        self.documents += 1
        if self._waiting >= 256 * self.length:
            self._write(last=False)

    def close(self) -> None:
        self._write(last=True)
        self._file.close()

    def _write(self, last: bool) -> None:
        body = self.length - 2
        stream = np.concatenate(self._pieces) if self._pieces else np.empty(0, self.dtype)
        full = len(stream) // body
        rest = stream[full * body :]
        blocks = np.full((full + bool(last and len(rest)), self.length), self.pad_id, self.dtype)
        blocks[:, 0] = self.cls_id
        blocks[:full, 1:-1] = stream[: full * body].reshape(full, body)
        blocks[:full, -1] = self.sep_id
        if len(blocks) > full:
            blocks[full, 1 : len(rest) + 1] = rest
            blocks[full, len(rest) + 1] = self.sep_id
        self._pieces, self._waiting = ([] if last else [rest]), (0 if last else len(rest))
        self._file.write(blocks.tobytes())
        self._account(blocks, +1)

    def _account(self, blocks: np.ndarray, sign: int) -> None:
        real = blocks[blocks != self.pad_id]
        self.blocks += sign * len(blocks)
        self.real_tokens += sign * real.size
        self.counts += sign * np.bincount(real, minlength=len(self.counts))

    def give_last_block(self, other: _Packer) -> None:
        """Move the last block to the (closed, empty) `other`."""
        size = self.length * self.dtype.itemsize
        with self.path.open("r+b") as file:
            file.seek((self.blocks - 1) * size)
            data = file.read(size)
            file.truncate((self.blocks - 1) * size)
        other.path.write_bytes(data)
        block = np.frombuffer(data, self.dtype)[None]
        self._account(block, -1)
        other._account(block, +1)


def prepare(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    output: Path,
    *,
    sequence_length: int,
    heldout_fraction: float,
    seed: int,
    source: str,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Tokenize, pack and write `documents` to the folder `output`; returns its manifest.

    Writes train.bin and heldout.bin ([blocks, sequence_length], uint16 or uint32), token_counts.npy (int64 [V], of the
    train part), tokenizer/ and manifest.json into a sibling folder that takes the name `output` once complete.
    A document is held out by a hash of (seed, text) alone, so that adding documents never moves others; where that leaves
    one split empty and the other with two blocks or more, the last block changes sides.
    `progress` is called with the characters read so far.
    Raises UserError for a corpus without a token, or for a setting out of range.
    """
    output = Path(output)
    _check(output, tokenizer, sequence_length, heldout_fraction)
    vocab_size = len(tokenizer)
    dtype = np.dtype(np.uint16 if vocab_size < 65536 else np.uint32)
    backend = plain_backend(tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    building = output.parent / f".{output.name}.building-{os.getpid()}"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        train, heldout = (
            _Packer(building / f"{split}.bin", sequence_length, dtype, vocab_size,
                    tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
            for split in SPLITS
        )
        read = 0
        for batch in _batches(documents):
            for text, encoding in zip(batch, backend.encode_batch(batch, add_special_tokens=False), strict=True):
                if encoding.ids:
                    (heldout if _unit_hash(seed, text) < heldout_fraction else train).add(encoding.ids)
            read += sum(map(len, batch))
            if progress is not None:
                progress(read)
        train.close()
        heldout.close()
        if not train.documents + heldout.documents:
            raise UserError(f"{source}: the corpus is empty (no document with a token in it); give files that hold text")
        if heldout_fraction and not heldout.blocks and train.blocks > 1:
            train.give_last_block(heldout)
        elif not train.blocks and heldout.blocks > 1:
            heldout.give_last_block(train)
        np.save(building / "token_counts.npy", train.counts)
        tokenizer.save_pretrained(str(building / "tokenizer"))
        parts = {"train": train, "heldout": heldout}
        manifest = {
            "sequence_length": sequence_length,
            "vocab_size": vocab_size,
            "dtype": dtype.name,
            "blocks": {split: part.blocks for split, part in parts.items()},
            "real_tokens": {split: part.real_tokens for split, part in parts.items()},
            "documents": {split: part.documents for split, part in parts.items()},
            "source": source,
            "seed": seed,
            "heldout_fraction": heldout_fraction,
            **{f"{kind}_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "cls", "sep", "mask")},
            "special_ids": sorted(set(tokenizer.all_special_ids)),
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        }
        manifest["fingerprint"] = _fingerprint(building, manifest["tokenizer_fingerprint"])
        (building / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        _publish(building, output)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _check(output: Path, tokenizer: PreTrainedTokenizerFast, sequence_length: int, heldout_fraction: float) -> None:
    if sequence_length < 8:
        raise UserError(f"sequence_length = {sequence_length}: must be at least 8 ([CLS] and [SEP] take two)")
    if not 0 <= heldout_fraction < 1:
        raise UserError(f"heldout_fraction = {heldout_fraction}: must be at least 0 and below 1")
    others = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id}
    if tokenizer.pad_token_id is None or None in others or tokenizer.pad_token_id in others:
        raise UserError("the tokenizer needs [CLS], [SEP] and mask tokens and a padding token that is none of them; "
                        "use a BERT-like encoder's")
    if output.exists() and not (output.is_dir() and ((output / "manifest.json").exists() or not any(output.iterdir()))):
        raise UserError(f"{output}: exists and is not prepared data; choose another output folder or remove it")


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, DOCUMENTS_A_BATCH)):
        yield batch


def _unit_hash(seed: int, text: str) -> float:
    """A number in [0, 1) fixed by (seed, text); Python's own hash changes from run to run."""
    digest = hashlib.blake2b(f"{seed}\0{text}".encode(errors="replace"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def _fingerprint(folder: Path, tokenizer_sha: str) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        with (folder / f"{split}.bin").open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    digest.update(tokenizer_sha.encode())
    return digest.hexdigest()


def _publish(building: Path, output: Path) -> None:
    """Give the finished folder its name; earlier prepared data is there until the moment before."""
    old = output.parent / f"{building.name}-old"
    if output.exists():
        output.rename(old)
    building.rename(output)
    shutil.rmtree(old, ignore_errors=True)
