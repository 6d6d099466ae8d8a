"""Trackio."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Run:
    """A run of Trackio: where the user has set, else in a database in the run's folder."""

    def __init__(self, name: str, config: dict[str, Any], id: str | None, folder: Path, say: Callable[[str], None]):
        """Begin a run, or continue the one that has this id, which is its name."""
        remote = any(os.environ.get(f"TRACKIO_{key}") for key in ("SPACE_ID", "SERVER_URL"))
        shared = remote or bool(os.environ.get("TRACKIO_DIR"))
        if not shared:
            os.environ["TRACKIO_DIR"] = str(folder / "trackio")
        if not remote:
            os.environ["HF_HUB_OFFLINE"] = "1"  # it would ask the Hub for the user's name
        import trackio  # it reads these while it is imported

        warnings.showwarning = lambda message, *_: say(f"trackio: {message}")  # its way to report a failure

        self.id = id or (f"{name}-{secrets.token_hex(3)}" if shared else name)  # runs are found by name
        self._run = trackio.init("ds-distill", name=self.id, config=config, resume="allow", embed=False)

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Report the figures of some steps."""
        for row in rows:
            self._run.log(row["values"], step=row["step"])

    def finish(self, finished: bool) -> None:
        """End the run."""
        self._run.finish()
