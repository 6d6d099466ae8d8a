"""Files that are written whole or not at all, and JSON that any reader takes."""

import json
import math
import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Whole or not at all: what finds the file takes it for done."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def json_text(value: object, indent: int | None = None) -> str:
    """Return `value` as JSON that any reader takes. What is not a finite number has not been measured: null. (NaN and
    Infinity, which Python writes, are no JSON.)"""
    return json.dumps(_measured(value), indent=indent, allow_nan=False)


def _measured(value: object) -> object:
    if isinstance(value, dict):
        return {key: _measured(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_measured(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, value: dict) -> None:
    write_whole(file, json_text(value, indent=2) + "\n")


def write_summary(summary: dict, folder: Path) -> None:
    """folder/summary.json: what the command's last line says. A model's folder may be published as it lies: there its own path is `.`"""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").is_file():
        inside = {
            key: value
            for key, value in summary.items()
            if isinstance(value, str) and Path(value).is_relative_to(folder)
        }
        summary = summary | {key: os.path.relpath(value, folder) for key, value in inside.items()}
    write_json(folder / "summary.json", summary)
