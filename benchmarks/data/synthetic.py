"""Write prepared folders without a corpus: small ones with random ids, and ones of any size whose ids are holes."""

import json
import zlib
from pathlib import Path

import numpy as np

from ds_distill.data.shards import ShardWriter
from ds_distill.data.token_files import LENGTHS, MAX_SHARDS, ROWS, SHARD_BYTES, merge

SPECIAL = [1, 2, 3, 4]  # not 0, which a hole reads as
PAD, CLS, SEP, MASK = SPECIAL
DTYPE = np.dtype(np.uint16)
CHUNK = 2**20  # rows that are written at once


def write_random(folder: Path, sequences: int, length: int, vocabulary: int) -> None:
    """Write a folder of sequences of random ids, all of one length."""
    random, special = np.random.default_rng(0), np.isin(np.arange(vocabulary), SPECIAL)
    parts = folder / "parts"
    parts.mkdir(parents=True)
    writer = ShardWriter(parts / "part", special, DTYPE)
    ids = random.integers(max(SPECIAL) + 1, vocabulary, (sequences, length))
    ids[:, 0], ids[:, -1] = CLS, SEP
    writer.add(list(ids))
    shard = writer.close() | {"path": writer.stem, "source": 0}
    write_manifest(folder, sequences, length, vocabulary, merge(folder, {"train": [shard]}, DTYPE, "none"))


def write_sparse(folder: Path, tokens: int, length: int, vocabulary: int) -> int:
    """Write a folder of so many tokens in sequences of one length, and return the number of sequences.

    The files of ids are holes, which take no room on the disk and read as token 0. The rows and lengths are written
    whole, as those of real text would be, with the checksum of such a sequence.
    """
    folder.mkdir(parents=True)
    sequences = tokens // length
    bytes_each = length * DTYPE.itemsize
    in_shard = -(-max(SHARD_BYTES, sequences * bytes_each // MAX_SHARDS) // bytes_each)
    shards = []
    for number, first in enumerate(range(0, sequences, in_shard)):
        count = min(in_shard, sequences - first)
        shards.append({"file": f"train-{number:03d}", "sequences": count, "tokens": count * length})
        with (folder / f"train-{number:03d}.bin").open("wb") as file:
            file.truncate(count * bytes_each)
    rows, lengths = np.empty(CHUNK, ROWS), np.empty(CHUNK, LENGTHS)
    rows["crc"], lengths["length"], lengths["maskable"] = zlib.crc32(bytes(bytes_each)), length, length
    with (folder / "train.rows").open("wb") as rows_file, (folder / "train.lengths").open("wb") as lengths_file:
        for first in range(0, sequences, CHUNK):
            count = min(CHUNK, sequences - first)
            rows["start"] = np.arange(first, first + CHUNK) * length
            rows_file.write(rows[:count].tobytes())
            lengths_file.write(lengths[:count].tobytes())
    write_manifest(folder, sequences, length, vocabulary, {"format": 2, "shards": {"train": shards}})
    return sequences


def write_manifest(folder: Path, sequences: int, length: int, vocabulary: int, files: dict) -> None:
    """Write what belongs to a prepared folder beside the files of its split."""
    np.save(folder / "token_counts.npy", np.ones(vocabulary, np.int64))
    manifest = files | {
        "mode": "packed",
        "sequence_length": length,
        "vocab_size": vocabulary,
        "dtype": DTYPE.name,
        "special_ids": SPECIAL,
        "pad_id": PAD,
        "sep_id": SEP,
        "mask_id": MASK,
        "sources": [{"sequences": {"train": sequences}}],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
