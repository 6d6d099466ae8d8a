"""Conversion of a prepared folder of the former format, without tokenizing its text again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ds_distill.data.prepare import publish, replaceable
from ds_distill.data.token_files import FORMAT, format_of, merge, open_manifest
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError
from ds_distill.utils.locks import try_lock


def convert(folder: Path) -> dict[str, Any]:
    """Give a prepared folder the files of today's format, and return its manifest.

    The sequences stay the same. Until the new files are complete, the folder keeps those that it has, so the disk needs
    room for both. A folder of today's format is left alone.

    Raises:
        UserError: If the folder holds no prepared data, or a file of it is missing or cut.
    """
    manifest = open_manifest(folder, oldest=FORMAT - 1)
    if format_of(manifest) == FORMAT:
        return manifest
    folder = replaceable(folder)
    shards = {
        split: [shard | {"path": folder / shard["file"]} for shard in parts]
        for split, parts in manifest["shards"].items()
    }
    building = folder.parent / f".{folder.name}.converting"
    building.mkdir(exist_ok=True)
    with (building / "lock").open("w", encoding="utf-8") as lock:
        try_lock(lock, folder, lambda: "another process")
        data = building / "data"
        shutil.rmtree(data, ignore_errors=True)
        files = (
            f"{shard['file']}{suffix}" for parts in shards.values() for shard in parts for suffix in (".bin", ".idx")
        )
        merged = set(files)
        try:
            shutil.copytree(folder, data, symlinks=True, ignore=lambda _, names: merged.intersection(names))
            with spinner(f"merging {len(merged) // 2:,} shards"):
                manifest |= merge(data, shards, np.dtype(manifest["dtype"]), manifest["tokenizer_fingerprint"])
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: missing; restore the file or prepare the corpus again") from error
        (data / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        publish(data, folder)
        shutil.rmtree(building)
    return manifest
