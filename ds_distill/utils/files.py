"""Files that are written whole or not at all, and JSON that any reader accepts."""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from ds_distill.utils.errors import UserError


def write_atomically(file: Path, text: str) -> None:
    """Write a file whole or not at all, because readers take an existing file for complete."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def sync(path: Path) -> None:
    """Have the disk keep the bytes of a file, or the names in a folder, through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a folder with all that is in it; nothing may be there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def copy_within(source: Path, target: Path, root: Path) -> None:
    """Copy a file, or a folder with all that is in it, into what may be published.

    Args:
        source: The file or folder.
        target: The name of the copy. A folder may exist.
        root: The folder of a user that `source` belongs to. Links may lead anywhere in it; in the
            Hugging Face cache also to the model's blobs, of which its folders are made.

    Raises:
        UserError: A link leads elsewhere. Its target may be private.
    """
    home = root.resolve()
    if home.parent.name == "snapshots" and home.parents[1].name.startswith("models--"):
        home = home.parents[1]
    files = [source]
    for place, folders, names in os.walk(source):
        files += [Path(place, name) for name in (*folders, *names)]
    for file in files:
        if not (resolved := file.resolve()).is_relative_to(home):
            raise UserError(
                f"{file}: a link to {resolved}, which is outside of {root}, and a copy of it may be published; put the "
                "file itself there"
            )
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def json_text(value: object, indent: int | None = None) -> str:
    """Return `value` as JSON that any reader accepts.

    A number that is not finite has not been measured and becomes null. NaN and Infinity, which
    Python writes, are no JSON.
    """
    return json.dumps(_measured(value), indent=indent, allow_nan=False)


def _measured(value: object) -> object:
    if isinstance(value, dict):
        return {key: _measured(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_measured(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, value: dict) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_atomically(file, json_text(value, indent=2) + "\n")


def read_json_object(file: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds; raise OSError or ValueError where it holds none."""
    value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"it holds {json.dumps(value)[:20]}, which is no JSON object")
    return value


class StoredSummary(dict):
    """The summary of work that was finished before, as its folder's summary.json has it."""


class PartSummary(dict):
    """The summary of a part of some work, whose folder is complete or absent and therefore not there yet."""


def read_summary(folder: Path) -> StoredSummary | None:
    """Return the content of folder/summary.json; None where there is none, or no JSON."""
    try:
        return StoredSummary(read_json_object(folder / "summary.json"))
    except (OSError, ValueError):
        return None


def write_summary(summary: dict, folder: Path) -> None:
    """Write folder/summary.json, which has the content of the command's last line, unless it was read from there.

    The summary of a part of the work is not written.

    A model's folder may be published as it is, so its summary has paths inside the folder relative
    to it.
    """
    if isinstance(summary, StoredSummary | PartSummary):
        return
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").is_file():
        inside = {
            key: value
            for key, value in summary.items()
            if isinstance(value, str) and Path(value).is_relative_to(folder)
        }
        summary = summary | {key: os.path.relpath(value, folder) for key, value in inside.items()}
    write_json(folder / "summary.json", summary)


def rename_finished(partial: Path, folder: Path) -> None:
    """Give a finished folder its name; where another process has done the same work before, remove this one."""
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(partial)
