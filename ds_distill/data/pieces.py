"""What one worker does with one piece of a corpus: read, tokenize, pack, write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ds_distill.data.documents import Document, read
from ds_distill.data.encode import Encoder
from ds_distill.data.shard import Grouper, Packer, ShardWriter
from ds_distill.data.sources import Piece

SPLITS = ("train", "heldout")
DOCUMENTS_A_BATCH = 128
SHORT_DOCUMENT = 12  # tokens


@dataclass(frozen=True)
class Format:
    """How documents become sequences. tokenizer: the library's JSON; special_ids, *_id: of the tokenizer; the rest as in recipe.Data."""

    tokenizer: str
    vocab_size: int
    special_ids: tuple[int, ...]
    cls_id: int
    sep_id: int
    unknown_id: int | None
    mode: str
    sequence_length: int
    heldout_fraction: float
    seed: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.vocab_size < 65536 else np.uint32)

    def writer(self, stem: Path) -> ShardWriter:
        special = np.zeros(self.vocab_size, bool)
        special[list(self.special_ids)] = True
        return ShardWriter(stem, special, self.dtype)


class PieceWorker:
    """Turns pieces into shards; keeps its encoder's memory from piece to piece."""

    def __init__(self, form: Format):
        self.form = form
        self.encoder = Encoder(Tokenizer.from_str(form.tokenizer))
        self.from_text = self._special_from_text()

    def _special_from_text(self) -> np.ndarray:
        """Special ids that plain text can have: XLM-R's <s>, <pad> and <mask> are pieces of its own vocabulary, BERT's and RoBERTa's are not."""
        special = [i for i in self.form.special_ids if i != self.form.unknown_id]
        texts = [self.encoder.tokenizer.id_to_token(i) for i in special]
        return np.array([i for i, ids in zip(special, self.encoder(texts), strict=True) if i in ids], np.uint32)

    def __call__(self, piece: Piece, folder: Path, tick: Callable[[int], None] = lambda _: None) -> None:
        """Write the folder: a shard a split, report.json and arrays.npz (what is left over of each split, token counts of the train split,
        a hash of every document). It has its name only when complete."""
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        form = self.form
        writers = {split: form.writer(partial / split) for split in SPLITS}
        if form.mode == "packed":
            makers = {split: Packer(writer, form.sequence_length, form.cls_id, form.sep_id) for split, writer in writers.items()}
        else:
            makers = {split: Grouper(writer, form.sequence_length, form.cls_id, form.sep_id, form.unknown_id) for split, writer in writers.items()}
        report, hashes, found = Counter(), array("Q"), read(piece, tick)
        while batch := list(islice(found, DOCUMENTS_A_BATCH)):
            self._add(batch, makers, report, hashes)
        rest = {split: maker.rest() if form.mode == "packed" else np.empty(0, np.int64) for split, maker in makers.items()}
        for maker in makers.values() if form.mode == "grouped" else ():
            report["sequences_too_short"] += maker.short
            report["sequences_unknown"] += maker.unknown
        shards = {split: writer.close() for split, writer in writers.items()}
        np.savez(partial / "arrays.npz", counts=writers["train"].counts, hashes=np.array(hashes, np.uint64), **rest)
        (partial / "report.json").write_text(json.dumps({"report": report, "shards": shards, "words": self.encoder.remembers}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    def _add(self, batch: list[Document], makers: dict, report: Counter, hashes: array) -> None:
        form = self.form
        units = [[d.text] if form.mode == "packed" else [line for line in d.text.split("\n") if line.strip()] for d in batch]
        encoded = iter(self.encoder([text for texts in units for text in texts]))
        for document, texts in zip(batch, units, strict=True):
            ids = [next(encoded) for _ in texts]
            if len(self.from_text):  # a [SEP] or a padding that a web page spells out would be taken for ours
                kept = [part[~np.isin(part, self.from_text)] for part in ids]
                report["special"] += sum(map(len, ids)) - sum(map(len, kept))
                ids = kept
            tokens = sum(map(len, ids))
            number = _hash(form.seed, document.text)
            report["characters"] += len(document.text)
            report["bad_utf8"] += document.bad_utf8
            report["cut"] += document.cut
            if not tokens:
                report["empty"] += 1
                continue
            hashes.append(number)
            report["short"] += tokens < SHORT_DOCUMENT
            split = "heldout" if (number >> 11) / 2**53 < form.heldout_fraction else "train"
            report[f"documents_{split}"] += 1
            makers[split].add(ids[0] if form.mode == "packed" else ids)


def _hash(seed: int, text: str) -> int:
    """64 bits fixed by (seed, text); Python's own hash changes from run to run."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(errors="replace"), digest_size=8).digest(), "little")
