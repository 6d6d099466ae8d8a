"""The last part of preparing a corpus: the finished pieces become one folder of data with a manifest."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_distill.data.accounting import Accounts
from ds_distill.data.duplicates import DuplicateCounter
from ds_distill.data.packing import Packer
from ds_distill.data.shards import INDEX
from ds_distill.data.sources import WorkUnit, corpus_identity
from ds_distill.data.token_files import merge
from ds_distill.data.tokenizer import save_tokenizer, tokenizer_fingerprint
from ds_distill.data.worker import SPLITS, EncodingSpec
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError


def piece_folder(building: Path, number: int) -> Path:
    return building / f"piece-{number:05d}"


@dataclass
class _Assembly:
    """What the pieces of a corpus add up to, while the folder of its data is built.

    Attributes:
        counts: [vocab_size] int64, how often each token occurs in the train split.
        accounts: What became of every character and document.
        duplicates: Counts the documents that occurred before.
        maskable: By split, how many sequences have each number of maskable tokens.
        shards: By split, what `token_files.merge` takes.
        sources: The inputs' entries of the manifest.
        leftovers: By (source, split), the tokens that fill no whole sequence, an array per piece.
    """

    counts: np.ndarray
    accounts: Accounts
    duplicates: DuplicateCounter
    maskable: dict[str, Counter[int]]
    shards: dict[str, list[dict]]
    sources: list[dict]
    leftovers: dict[tuple[int, str], list[np.ndarray]]


def assemble(
    inputs: list[str], pieces: list[WorkUnit], content: str, building: Path, spec: EncodingSpec, tokenizer
) -> dict[str, Any]:
    """Build the folder building/data from the finished pieces and return its manifest."""
    data = building / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    assembly = _add_up(inputs, pieces, building, spec)
    scratch = building / "leftovers"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    _pack_leftovers(assembly, scratch, spec)
    remarks = assembly.accounts.sentences()
    if not any(assembly.shards.values()):
        reasons = "; ".join(remarks)
        raise UserError(
            f"{', '.join(inputs)}: the corpus is empty, because no document yields a token; "
            f"{reasons or 'give files that contain text'}"
        )
    _ensure_nonempty_splits(scratch, assembly.shards, assembly.counts, assembly.maskable, spec)
    for split in SPLITS:
        for shard in assembly.shards[split]:
            assembly.sources[shard["source"]]["sequences"][split] += shard["sequences"]
            assembly.sources[shard["source"]]["tokens"][split] += shard["tokens"]
    np.save(data / "token_counts.npy", assembly.counts)
    save_tokenizer(tokenizer, data / "tokenizer")
    manifest = _manifest(assembly, spec, tokenizer)
    with spinner("merging the prepared parts"):
        manifest |= merge(data, assembly.shards, spec.dtype, manifest["tokenizer_fingerprint"])
    manifest |= {
        "remarks": remarks,
        "corpus": corpus_identity(inputs, pieces),
        "content": content,
    }
    (data / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _add_up(inputs: list[str], pieces: list[WorkUnit], building: Path, spec: EncodingSpec) -> _Assembly:
    """Return what the reports of all pieces add up to."""
    assembly = _Assembly(
        counts=np.zeros(spec.vocab_size, np.int64),
        accounts=Accounts(),
        duplicates=DuplicateCounter(building / "counting"),
        maskable={split: Counter() for split in SPLITS},
        shards={split: [] for split in SPLITS},
        sources=[
            {"input": given, "documents": 0, "sequences": dict.fromkeys(SPLITS, 0), "tokens": dict.fromkeys(SPLITS, 0)}
            for given in inputs
        ],
        leftovers={},
    )
    for number, piece in enumerate(pieces):
        folder = piece_folder(building, number)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assembly.accounts.add(piece.path, piece.kind, report)
        documents = sum(report["found"].get(f"documents_{split}", 0) for split in SPLITS)
        assembly.sources[piece.source]["documents"] += documents
        with np.load(folder / "arrays.npz") as arrays:
            assembly.counts += arrays["counts"]
            assembly.duplicates.add(arrays["hashes"])
            for split in SPLITS:
                if len(arrays[split]):
                    assembly.leftovers.setdefault((piece.source, split), []).append(arrays[split])
        for split in SPLITS:
            shard = report["shards"][split]
            assembly.maskable[split].update({int(n): sequences for n, sequences in shard.pop("maskable").items()})
            if shard["sequences"]:
                assembly.shards[split].append(shard | {"path": folder / split, "source": piece.source})
    return assembly


def _pack_leftovers(assembly: _Assembly, scratch: Path, spec: EncodingSpec) -> None:
    """Pack what fills no sequence of one piece into sequences of several."""
    for (source, split), parts in sorted(assembly.leftovers.items()):
        writer = spec.writer(path := scratch / f"{split}-rest-{source}")
        packer = Packer(writer, spec.sequence_length, spec.cls_id, spec.sep_id)
        for part in parts:
            packer.add(part)
        packer.finish()
        shard = writer.close() | {"path": path, "source": source}
        assembly.maskable[split].update(shard.pop("maskable"))
        assembly.shards[split].append(shard)
        if split == "train":
            assembly.counts += writer.counts


def _manifest(assembly: _Assembly, spec: EncodingSpec, tokenizer) -> dict[str, Any]:
    """Return the manifest's entries except those on its files."""
    counts, shards = assembly.counts, assembly.shards
    statistics = assembly.accounts.statistics()
    statistics["duplicate"] = assembly.duplicates.count()
    known_tokens = counts.sum() - counts[[i for i in spec.special_ids if i != spec.unknown_id]].sum()
    maskable = assembly.maskable
    return {
        "mode": spec.mode,
        "sequence_length": spec.sequence_length,
        "vocab_size": spec.vocab_size,
        "dtype": spec.dtype.name,
        "blocks": {split: sum(shard["sequences"] for shard in shards[split]) for split in SPLITS},
        "real_tokens": {split: sum(shard["tokens"] for shard in shards[split]) for split in SPLITS},
        "documents": {split: statistics.pop(f"documents_{split}", 0) for split in SPLITS},
        "found": {key: statistics[key] for key in sorted(statistics)},
        "characters": assembly.accounts.characters(),
        "maskable": {split: {str(n): maskable[split][n] for n in sorted(maskable[split])} for split in SPLITS},
        "unknown_share": float(counts[spec.unknown_id] / max(1, known_tokens)) if spec.unknown_id is not None else 0.0,
        "seed": spec.seed,
        "heldout_fraction": spec.heldout_fraction,
        "drop_duplicates": spec.drop_duplicates,
        **{f"{kind}_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "cls", "sep", "mask")},
        "special_ids": list(spec.special_ids),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "sources": assembly.sources,
    }


def _ensure_nonempty_splits(
    scratch: Path, shards: dict[str, list[dict]], counts: np.ndarray, maskable: dict[str, Counter], spec: EncodingSpec
) -> None:
    """Move the last sequence into an empty split.

    A small corpus may leave one split empty. The other then gives its last sequence, if it has two.
    """
    for empty, full in (("heldout", "train"), ("train", "heldout")):
        wanted = 0 < spec.heldout_fraction < 1 and not shards[empty]
        if not wanted or sum(shard["sequences"] for shard in shards[full]) < 2:
            continue
        last = shards[full].pop()
        rows = np.fromfile(last["path"].with_suffix(".idx"), INDEX)
        ids = np.fromfile(last["path"].with_suffix(".bin"), spec.dtype)
        sequences = [ids[row["start"] : row["start"] + row["length"]] for row in rows]
        for split, part in ((full, sequences[:-1]), (empty, sequences[-1:])):
            if part:
                writer = spec.writer(path := scratch / f"{split}-last")
                writer.add(part)
                shard = writer.close() | {"path": path, "source": last["source"]}
                del shard["maskable"]
                shards[split].append(shard)
        maskable[full] -= Counter({int(rows[-1]["maskable"]): 1})
        maskable[empty][int(rows[-1]["maskable"])] += 1
        counts += (1 if empty == "train" else -1) * np.bincount(sequences[-1], minlength=len(counts))
