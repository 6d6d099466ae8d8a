"""The work of one worker on one piece of a corpus: read, tokenize, pack, write."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ds_distill.data.document_hashes import DocumentHashes
from ds_distill.data.duplicates import later_copies, without
from ds_distill.data.encode import Encoder
from ds_distill.data.packing import LinePacker, Packer
from ds_distill.data.read_warnings import LONG_ROWS, Findings
from ds_distill.data.readers import Document, read
from ds_distill.data.shards import ShardWriter
from ds_distill.data.sources import WorkUnit
from ds_distill.data.unencoded import Loss
from ds_distill.utils.files import rename_finished

SPLITS = ("train", "heldout")
DOCUMENTS_A_BATCH = 128
SHORT_DOCUMENT = 12  # tokens


@dataclass(frozen=True)
class EncodingSpec:
    """The rules by which documents become sequences.

    The ids are those of the tokenizer, and the other fields are as in recipe.Data.

    Args:
        tokenizer: The JSON of the tokenizers library.
    """

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
    drop_duplicates: bool = False

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type, uint16 or uint32, that holds every id."""
        return np.dtype(np.uint16 if self.vocab_size < 65536 else np.uint32)

    def writer(self, stem: Path) -> ShardWriter:
        """Return a writer of the shard at `stem`."""
        special = np.zeros(self.vocab_size, bool)
        special[list(self.special_ids)] = True
        return ShardWriter(stem, special, self.dtype)


class PieceWorker:
    """A worker that turns pieces into shards; its encoder remembers words from piece to piece."""

    def __init__(self, spec: EncodingSpec):
        self.spec = spec
        self.encoder = Encoder(Tokenizer.from_str(spec.tokenizer), spec.unknown_id, spec.special_ids)

    def __call__(self, piece: WorkUnit, folder: Path, tick: Callable[[int], None] = lambda _: None) -> None:
        """Write the folder of a piece, which has its name only when complete.

        It holds one shard per split, report.json and arrays.npz. The arrays are the rest of each
        split, the token counts of the train split and a hash of every document. The report's
        `characters` tell what became of each character that was read: "tokenized", or a cause of
        its loss. They sum to "read".
        """
        # No other process writes into this folder, even if it does the same work.
        partial = folder.with_name(f"{folder.name}-{uuid.uuid4().hex}.partial")
        partial.mkdir(parents=True)
        spec = self.spec
        writers = {split: spec.writer(partial / split) for split in SPLITS}
        packers: Mapping[str, Packer | LinePacker]
        if spec.mode == "packed":
            packers = {
                split: Packer(writer, spec.sequence_length, spec.cls_id, spec.sep_id)
                for split, writer in writers.items()
            }
        else:
            packers = {
                split: LinePacker(writer, spec.sequence_length, spec.cls_id, spec.sep_id, spec.unknown_id)
                for split, writer in writers.items()
            }
        statistics: Counter[str] = Counter()
        findings, hashes = Findings(), DocumentHashes(spec.seed)
        documents = read(piece, tick, findings)
        if spec.drop_duplicates:
            documents = without(documents, later_copies(folder), findings)
        while batch := list(islice(documents, DOCUMENTS_A_BATCH)):
            self._add(batch, packers, statistics, findings.characters, hashes)
        rest: dict[str, Any] = {
            split: packer.rest() if isinstance(packer, Packer) else np.empty(0, np.int64)
            for split, packer in packers.items()
        }
        for packer in packers.values():
            if isinstance(packer, LinePacker):
                statistics.update({"sequences_too_short": packer.short, "sequences_unknown": packer.unknown})
                findings.characters.update(packer.lost)
                findings.characters["tokenized"] -= sum(packer.lost.values())
        statistics["duplicates_dropped"] = findings.dropped
        statistics["long_rows"] = findings.remarks.get(LONG_ROWS, (0, ""))[0]
        shards = {split: writer.close() for split, writer in writers.items()}
        np.savez(partial / "arrays.npz", counts=writers["train"].counts, hashes=hashes.finish(), **rest)
        report = {
            "found": statistics,
            "characters": findings.characters,
            "remarks": findings.remarks,
            "shards": shards,
            "examples": self.encoder.examples,
            "words": self.encoder.caches_words,
        }
        (partial / "report.json").write_text(json.dumps(report), encoding="utf-8")
        rename_finished(partial, folder)

    def _add(
        self,
        batch: list[Document],
        packers: Mapping[str, Packer | LinePacker],
        statistics: Counter[str],
        characters: Counter[str],
        hashes: DocumentHashes,
    ) -> None:
        spec = self.spec
        units = [
            [document.text] if spec.mode == "packed" else [line for line in document.text.split("\n") if line.strip()]
            for document in batch
        ]
        texts = [text for parts in units for text in parts]
        encoded = self.encoder.encode(texts)
        statistics["special"] += encoded.special
        for cause, number in zip(Loss, encoded.lost.sum(0).tolist(), strict=True):
            characters[cause.name.lower()] += number
        kept = (np.fromiter(map(len, texts), np.int64, len(texts)) - encoded.lost.sum(1)).tolist()
        end = read = in_lines = tokenized = 0
        for document, parts in zip(batch, units, strict=True):
            start, end = end, end + len(parts)
            ids = encoded.ids[start:end]
            tokens = sum(map(len, ids))
            number = hashes.add(document)
            read += len(document.text)
            in_lines += sum(map(len, parts))
            statistics["bad_utf8"] += document.bad_utf8
            statistics["cut"] += document.cut
            if not tokens:
                statistics["empty"] += 1
                characters["removed"] += sum(kept[start:end])
                continue
            hashes.keep()
            statistics["short"] += tokens < SHORT_DOCUMENT
            split = "heldout" if (number >> 11) / 2**53 < spec.heldout_fraction else "train"
            statistics[f"documents_{split}"] += 1
            tokenized += sum(kept[start:end])
            packer = packers[split]
            if isinstance(packer, Packer):
                packer.add(ids[0])
            else:
                packer.add(ids, kept[start:end])
        statistics["characters"] += read
        characters["between_documents"] += read - in_lines  # line ends, where a line is a sequence
        characters["tokenized"] += tokenized
