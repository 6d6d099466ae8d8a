"""Weights & Biases."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wandb

from ds_distill.utils.hub import is_offline

STEP = "train/global_step"  # as transformers' Trainer names it


class Run:
    """A run of Weights & Biases: online where the user is logged in, else in files that can be uploaded later."""

    def __init__(self, name: str, config: dict[str, Any], id: str | None, folder: Path, say: Callable[[str], None]):
        """Begin a run, or continue the one that has this id."""
        self.id = id or secrets.token_hex(4)
        files = Path(os.environ.get("WANDB_DIR") or folder)
        wandb.setup(wandb.Settings(silent=True, console="off"))
        why_offline = _why_offline()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ds-distill"),
            name=os.environ.get("WANDB_NAME", name),
            id=self.id,
            resume="allow",
            dir=files,
            config=config,
            allow_val_change=True,  # some settings may change when a run resumes
            mode=None if why_offline is None else "offline",
        )
        if self._run.offline:
            say(
                f"wandb: {why_offline or 'offline'}; the run is kept in files, which this uploads: "
                f"wandb sync {shlex.quote(str(files / 'wandb'))}/offline-run-*-{self.id}"
            )
        # wandb's own steps only grow, and a held-out set may be added to a step that has passed
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Report the figures of some steps."""
        for row in rows:
            self._run.log({**row["values"], STEP: row["step"]})

    def finish(self, finished: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if finished else 1)
        wandb.teardown()


def _why_offline() -> str | None:
    """Return why the run cannot be online; None where it can, or where the user has chosen a mode."""
    if os.environ.get("WANDB_MODE"):
        return None
    if is_offline():
        return "--offline or HF_HUB_OFFLINE"
    try:
        return None if wandb.login() else "not logged in"
    except wandb.errors.UsageError:
        return "not logged in (no WANDB_API_KEY)"
    except wandb.errors.Error as error:
        return " ".join(str(error).split())[:200]
