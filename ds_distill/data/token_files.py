"""The files of a prepared folder, and how shards are merged into them.

manifest.json describes the folder. A split, "train" or "heldout", has these files:

    SPLIT-NNN.bin   the ids of its sequences, one after the other, in at most MAX_SHARDS files
    SPLIT.rows      a row for each sequence: where its ids begin, and their checksum
    SPLIT.lengths   a row for each sequence: how many tokens it has

A run keeps all of its files open, so their number must not grow with the corpus. The lengths are in a file of their
own because every rank reads those of a whole global batch at each step.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ds_distill.config.renamed import MODE_LINES
from ds_distill.data.shards import INDEX
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import read_json_object

FORMAT = 2  # version of these files; 1, which the manifest did not name, had the shards of every piece
MAX_SHARDS = 256  # of a split
SHARD_BYTES = 2**30  # A shard of fewer bytes takes the next piece too.
# start: the place of the first id among all ids of the split; crc: the crc32 of the sequence's bytes
ROWS = np.dtype([("start", "<u8"), ("crc", "<u4")])
# length: the number of ids; maskable: the number of ids that are not special tokens
LENGTHS = np.dtype([("length", "<u2"), ("maskable", "<u2")])
MAX_LENGTH = np.iinfo(LENGTHS["length"]).max
_CHUNK = 2**20  # rows that are merged at once


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of prepared data; raise OSError, ValueError or KeyError where it is none."""
    manifest = read_json_object(folder / "manifest.json")
    if manifest.get("mode") == "grouped":  # the name of an earlier version
        manifest["mode"] = MODE_LINES
    return manifest


def open_manifest(folder: str | Path, oldest: int = FORMAT) -> dict[str, Any]:
    """Return the manifest of a folder whose files have a format from `oldest` to today's; no other file is opened.

    Raises:
        UserError: If the folder holds no prepared data, or data of an earlier version.
    """
    file = Path(folder) / "manifest.json"
    try:
        manifest = read_manifest(Path(folder))
        _check_form(manifest)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: not a folder of prepared data (manifest.json is missing); prepare the corpus first"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not a valid manifest of prepared data ({error}); remove the folder and prepare the corpus again"
        ) from error
    if not oldest <= (found := format_of(manifest)) <= FORMAT:
        remedy = (
            f"convert it by `ds-distill prepare --convert {shlex.quote(str(folder))}`"
            if found < FORMAT
            else "use the version of ds-distill that prepared it, or prepare the corpus again"
        )
        raise UserError(f"{folder}: its files have format {found}, but this version reads format {FORMAT}; {remedy}")
    return manifest


def _check_form(manifest: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError where what is needed to read a folder's files lacks or has no sense."""
    if not np.issubdtype(np.dtype(manifest["dtype"]), np.unsignedinteger):
        raise ValueError(f"dtype = {manifest['dtype']}")
    numbers = [manifest["vocab_size"], manifest["sequence_length"]]
    for split in manifest["shards"].values():
        for shard in split:
            Path(shard["file"])
            numbers += [shard["sequences"], shard["tokens"]]
            if format_of(manifest) == 1:
                numbers.append(shard["source"])
                _ = shard["sha256"].encode(), manifest["tokenizer_fingerprint"].encode()
    for source in manifest["sources"]:
        numbers += [source["sequences"][split] for split in manifest["shards"]]
    if wrong := [number for number in [*numbers, manifest.get("format", 1)] if type(number) is not int or number < 0]:
        raise ValueError(f"{wrong[0]!r} is no whole number from 0")
    for split, shards in manifest["shards"].items():
        if sum(shard["sequences"] for shard in shards) != sum(s["sequences"][split] for s in manifest["sources"]):
            raise ValueError(f"the sources and the files have different numbers of {split} sequences")


def format_of(manifest: dict[str, Any]) -> int:
    """Return the version of the files of a prepared folder."""
    found = manifest.get("format", 1)
    return found if isinstance(found, int) else 0


def merge(
    folder: Path, shards: dict[str, list[dict[str, Any]]], dtype: np.dtype, tokenizer_fingerprint: str
) -> dict[str, Any]:
    """Write the files of all splits, and return the manifest's entries about them.

    The sequences of a source come before those of the next source, and keep their order.

    Args:
        folder: The folder to write into.
        shards: By split, entries that ShardWriter.close returns, with the path of the shard's files, without suffix,
            as "path", and the number of its source as "source".
        dtype: The type of the ids.
        tokenizer_fingerprint: What tells the tokenizer from others.
    """
    ordered = {split: sorted(parts, key=lambda shard: shard["source"]) for split, parts in shards.items()}
    # The digests of the shards stand for their bytes, so that none of them needs to be read again.
    digests = [shard["sha256"] for parts in ordered.values() for shard in parts]
    return {
        "format": FORMAT,
        "shards": {split: _merge_split(folder, split, parts, dtype) for split, parts in ordered.items()},
        "fingerprint": hashlib.sha256("\n".join([str(FORMAT), *digests, tokenizer_fingerprint]).encode()).hexdigest(),
    }


def _merge_split(folder: Path, split: str, shards: list[dict[str, Any]], dtype: np.dtype) -> list[dict[str, Any]]:
    """Merge shards, in their order, into the files of a split; memory use does not depend on their sizes."""
    tokens = sum(shard["tokens"] for shard in shards)
    limit = max(SHARD_BYTES // dtype.itemsize, -(-tokens // MAX_SHARDS))
    merged: list[dict[str, Any]] = []
    start = 0
    ids: BinaryIO | None = None
    with (folder / f"{split}.rows").open("wb") as rows, (folder / f"{split}.lengths").open("wb") as lengths:
        try:
            for shard in shards:
                if ids is None or merged[-1]["tokens"] >= limit:
                    if ids is not None:
                        ids.close()
                    merged.append({"file": f"{split}-{len(merged):03d}", "sequences": 0, "tokens": 0})
                    ids = (folder / f"{merged[-1]['file']}.bin").open("wb")
                _append(shard["path"].with_suffix(".bin"), ids, shard["tokens"] * dtype.itemsize)
                tokens = _append_rows(shard["path"].with_suffix(".idx"), shard["sequences"], start, rows, lengths)
                if tokens != shard["tokens"]:
                    raise UserError(
                        f"{shard['path'].with_suffix('.idx')}: has sequences of {tokens:,} tokens instead of "
                        f"{shard['tokens']:,}; remove the folder and prepare the corpus again"
                    )
                start += shard["tokens"]
                for key in ("sequences", "tokens"):
                    merged[-1][key] += shard[key]
        finally:
            if ids is not None:
                ids.close()
    return merged


def _append(file: Path, output: BinaryIO, size: int) -> None:
    """Append a file to an open one without reading it into this process."""
    with file.open("rb") as source:
        done = 0
        while done < size:
            # the kernel copies; it ends early only where the file does
            sent = os.sendfile(output.fileno(), source.fileno(), done, size - done)
            if not sent:
                raise UserError(
                    f"{file}: has {done:,} bytes of {size:,}; remove the folder and prepare the corpus again"
                )
            done += sent


def _append_rows(file: Path, count: int, start: int, rows: BinaryIO, lengths: BinaryIO) -> int:
    """Append what an index says of `count` sequences, whose ids are moved by `start`; return their tokens."""
    tokens = 0
    with file.open("rb") as source:
        while count:
            index = np.fromfile(source, INDEX, min(count, _CHUNK))
            if not len(index):
                raise UserError(
                    f"{file}: ends {count:,} sequences early; remove the folder and prepare the corpus again"
                )
            if index["length"].max() > MAX_LENGTH:
                raise UserError(
                    f"{file}: a sequence of {index['length'].max():,} tokens is longer than {MAX_LENGTH:,}; "
                    "prepare the corpus with a shorter data.sequence_length"
                )
            placed, sizes = np.empty(len(index), ROWS), np.empty(len(index), LENGTHS)
            placed["start"], placed["crc"] = index["start"] + np.uint64(start), index["crc"]
            sizes["length"], sizes["maskable"] = index["length"], index["maskable"]
            rows.write(placed.tobytes())
            lengths.write(sizes.tobytes())
            tokens += int(index["length"].sum())
            count -= len(index)
    return tokens
