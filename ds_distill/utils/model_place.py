"""An output folder and what lies in it."""

from __future__ import annotations

import json
from pathlib import Path


def find_model(folder: Path) -> Path:
    """Return where the model lies that `folder` means: there, or in it, where `folder` is the --output of a command.

    The summary of a run names its model by the path of that day. The folder may have been moved since, so the end of
    that path is looked for in it.
    """
    if (folder / "config.json").is_file():
        return folder
    try:
        made = Path(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["export"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder
    ends = (folder.joinpath(*made.parts[start:]) for start in range(len(made.parts)))
    return next((end for end in ends if (end / "config.json").is_file()), folder)
