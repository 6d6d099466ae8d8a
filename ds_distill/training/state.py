"""The progress of a run, and the outcome of one of its steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ds_distill.run_folder import RunFolder

if TYPE_CHECKING:  # a report reads curves without waiting for torch
    from torch import Tensor

    from ds_distill.data.batch import TokenCounts

Row = dict[str, Any]
# The columns of rows in the checkpoints of earlier versions.
HISTORY_COLUMNS = ("step", "tokens", "loss", "kl", "mlm", "cosine")
HELDOUT_COLUMNS = ("step", "tokens", "mlm_loss", "mlm_accuracy")


@dataclass(frozen=True)
class StepResult:
    """The outcome of an optimizer step, the same on every rank but for `sums`.

    Attributes:
        loss: The weighted loss over the global batch.
        losses: The mean of each term over its tokens, in nats where it is an entropy.
        grad_norm: The norm of the global gradient before clipping, or None where it was not computed.
        skipped: Whether the step was skipped because a gradient was not finite.
        stop: Whether a rank was asked to end the run.
        save: Whether a rank's clock asks for a checkpoint.
        evaluate: Whether a rank's clock asks for an evaluation.
        written: Whether every rank has written its files of a checkpoint.
        failed: Whether a rank could not write a checkpoint.
        sums: This rank's summed terms [number of terms] of each micro-batch.
    """

    loss: float
    losses: dict[str, float]
    grad_norm: float | None
    skipped: bool
    stop: bool
    save: bool
    evaluate: bool
    written: bool
    failed: bool
    sums: list[Tensor]


@dataclass
class TrainState:
    """The progress of a run, kept in its checkpoints.

    Attributes:
        step: The optimizer steps that are done.
        tokens: The real tokens trained on; those of skipped steps do not count.
        skipped: The skipped steps.
        history: A row {step, tokens, loss, each term} for each step; None where a value was not finite.
        heldout: Rows {step, tokens, each of evaluation.FIGURES} by the name of a held-out set. Rows of
            earlier versions have mlm_loss and mlm_accuracy only.
    """

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    history: list[Row] = field(default_factory=list)
    heldout: dict[str, list[Row]] = field(default_factory=dict)

    @classmethod
    def from_checkpoint(cls, saved: Mapping[str, Any]) -> TrainState:
        """Return the state that a checkpoint holds."""
        return cls(
            saved["step"],
            saved["tokens"],
            saved["skipped"],
            [_row(row, HISTORY_COLUMNS) for row in saved["history"]],
            {name: [_row(row, HELDOUT_COLUMNS) for row in rows] for name, rows in saved["heldout"].items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return asdict(self)

    def update(self, result: StepResult, counts: TokenCounts) -> None:
        """Count a step that was taken."""
        self.step += 1
        if result.skipped:
            self.skipped += 1
        else:
            self.tokens += counts.real
        values = {"loss": result.loss, **result.losses}
        self.history.append(
            {"step": self.step, "tokens": self.tokens}
            | {name: value if math.isfinite(value) else None for name, value in values.items()}
        )

    def was_evaluated(self, name: str) -> bool:
        """Return whether the held-out set `name` has been evaluated at this step."""
        rows = self.heldout.get(name)
        return rows is not None and bool(rows) and rows[-1]["step"] == self.step

    def add_evaluation(self, name: str, figures: Mapping[str, float | None]) -> None:
        """Keep the figures of a held-out set at this step."""
        self.heldout.setdefault(name, []).append({"step": self.step, "tokens": self.tokens, **figures})


def read_heldout_curves(run: Path) -> dict[str, list[Row]]:
    """Return the held-out rows of a finished run, by the name of the set; "" is the corpus's own part.

    Raises:
        OSError, ValueError, KeyError: The folder holds no finished run.
    """
    return read_curves(run).heldout


class Curves(NamedTuple):
    """What curves.json has: a row per step, held-out rows by the name of the set, and the teacher's figures on them."""

    history: list[Row]
    heldout: dict[str, list[Row]]
    teacher: dict[str, Row]


def read_curves(run: Path) -> Curves:
    """Return the curves of a finished run.

    Raises:
        OSError, ValueError, KeyError: The folder holds no finished run.
    """
    curves = json.loads(RunFolder(run).curves.read_text(encoding="utf-8"))
    return Curves(
        [_row(row, HISTORY_COLUMNS) for row in curves.get("history", [])],
        {name: [_row(row, HELDOUT_COLUMNS) for row in rows] for name, rows in curves["heldout"].items()},
        curves.get("teacher", {}),
    )


def _row(row: Row | list, columns: tuple[str, ...]) -> Row:
    return row if isinstance(row, dict) else dict(zip(columns, row, strict=True))
