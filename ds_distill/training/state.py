"""The progress of a run, and the outcome of one of its steps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ds_distill.run_folder import RunFolder

if TYPE_CHECKING:  # a report reads curves without waiting for torch
    from torch import Tensor

    from ds_distill.data.batch import TokenCounts

Row = dict[str, Any]
# The columns of rows in the checkpoints of earlier versions.
HISTORY_COLUMNS = ("step", "tokens", "loss", "kl", "mlm", "cosine")
# A run of millions of steps keeps no more rows than this, in memory and in each rank's checkpoint; the last ones have
# every step. Trackers have all.
MOST_ROWS, RECENT_ROWS = 4096, 1024
HELDOUT_COLUMNS = ("step", "tokens", "mlm_loss", "mlm_accuracy")


@dataclass(frozen=True)
class StepResult:
    """The outcome of an optimizer step, the same on every rank but for `sums`.

    Attributes:
        loss: The weighted loss over the global batch.
        losses: The mean of each term over its tokens, in nats where it is an entropy; None where it had no tokens.
        grad_norm: The norm of the global gradient before clipping, or None where it was not computed.
        skipped: Whether the step was skipped because a gradient was not finite.
        stop: Whether a rank was asked to end the run.
        save: Whether a rank's clock asks for a checkpoint.
        evaluate: Whether a rank's clock asks for an evaluation.
        written: Whether every rank has written its files of a checkpoint.
        failed: Whether a rank could not write a checkpoint.
        data_wait: The seconds that the slowest rank waited for its batches.
        sums: This rank's summed terms [number of terms] of each micro-batch.
    """

    loss: float
    losses: dict[str, float | None]
    grad_norm: float | None
    skipped: bool
    stop: bool
    save: bool
    evaluate: bool
    written: bool
    failed: bool
    data_wait: float
    sums: list[Tensor]


@dataclass
class TrainState:
    """The progress of a run, kept in its checkpoints.

    Attributes:
        step: The optimizer steps that are done.
        tokens: The real tokens trained on; those of skipped steps do not count.
        skipped: The skipped steps.
        history: Rows {step, tokens, loss, each term}, thinned by `thin`; None where a value was not finite. A term
            without tokens in a step is absent from its row.
        stages: Rows {stage, step, tokens} of the stages that have begun: their numbers, and the steps and tokens that
            were done before. Empty where the run has no stages.
        heldout: Rows {step, tokens, each of evaluation.FIGURES} by the name of a held-out set. Rows of
            earlier versions have mlm_loss and mlm_accuracy only.
        deviations: The teacher's standard deviation of each dimension, by the name of a site, see `deviations.py`.
    """

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    history: list[Row] = field(default_factory=list)
    heldout: dict[str, list[Row]] = field(default_factory=dict)
    deviations: dict[str, list[float]] = field(default_factory=dict)
    stages: list[Row] = field(default_factory=list)

    @classmethod
    def from_checkpoint(cls, saved: Mapping[str, Any]) -> TrainState:
        """Return the state that a checkpoint holds."""
        return cls(
            saved["step"],
            saved["tokens"],
            saved["skipped"],
            thin([_row(row, HISTORY_COLUMNS) for row in saved["history"]]),
            {name: [_row(row, HELDOUT_COLUMNS) for row in rows] for name, rows in saved["heldout"].items()},
            saved.get("deviations", {}),  # earlier versions measured none
            saved.get("stages", []),  # earlier versions had none
        )

    def as_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, not a copy: it is for saving at once."""
        return dict(vars(self))

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
            | {name: value if math.isfinite(value) else None for name, value in values.items() if value is not None}
        )
        self.history = thin(self.history)

    def begin_stage(self, number: int) -> None:
        """Note that a stage begins, unless that was noted before."""
        if not self.stages or self.stages[-1]["stage"] != number:
            self.stages.append({"stage": number, "step": self.step, "tokens": self.tokens})

    def was_evaluated(self, name: str) -> bool:
        """Return whether the held-out set `name` has been evaluated at this step."""
        rows = self.heldout.get(name)
        return rows is not None and bool(rows) and rows[-1]["step"] == self.step

    def add_evaluation(self, name: str, figures: Mapping[str, float | None]) -> None:
        """Keep the figures of a held-out set at this step."""
        self.heldout.setdefault(name, []).append({"step": self.step, "tokens": self.tokens, **figures})


def thin(history: list[Row]) -> list[Row]:
    """Return a history of at most MOST_ROWS rows: the first, the last RECENT_ROWS, and of the others as many as fit.

    Those are the rows of every second step, then of every fourth, and so on. The result depends on the
    steps that were added alone, so a resumed run has the rows of an uninterrupted one.
    """
    if len(history) <= MOST_ROWS:
        return history
    older, recent, stride = history[1:-RECENT_ROWS], history[-RECENT_ROWS:], 1
    while len(older) > (MOST_ROWS - RECENT_ROWS) // 2:
        stride *= 2
        older = [row for row in older if row["step"] % stride == 0]
    return [history[0], *older, *recent]


def read_heldout_curves(run: Path) -> dict[str, list[Row]]:
    """Return the held-out rows of a finished run, by the name of the set; "" is the corpus's own part.

    Raises:
        OSError, ValueError, KeyError: The folder holds no finished run.
    """
    return read_curves(run).heldout


class Curves(NamedTuple):
    """What curves.json has: rows of steps, held-out rows by the name of the set, the teacher's figures, and stages."""

    history: list[Row]
    heldout: dict[str, list[Row]]
    teacher: dict[str, Row]
    stages: list[Row] = []


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
        curves.get("stages", []),
    )


def _row(row: Row | list, columns: tuple[str, ...]) -> Row:
    return row if isinstance(row, dict) else dict(zip(columns, row, strict=True))
