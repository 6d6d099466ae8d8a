"""The figures of runs side by side, as rows: each run and its teacher, and the share of the teacher that it keeps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds_distill.reporting.heldout import shared_kind
from ds_distill.reporting.runs import Run
from ds_distill.run_folder import RunFolder

Row = Mapping[str, Any]
TEACHER = "teacher"  # the name of a teacher that has no run of its own in the report
STUDENT_KEYS = (
    "teacher",
    "student.num_layers",
    "student.hidden_size",
    "student.num_attention_heads",
    "student.intermediate_size",
    "student.embedding_size",
    "student.num_hidden_groups",
    "student.linear_rank",
    "student.family",
    "student.init_layers",
    "training.max_tokens",
)


@dataclass(frozen=True)
class Share:
    """A quotient of two figures, with its standard error where both figures have one."""

    value: float
    error: float | None


@dataclass(frozen=True)
class TeacherFigures:
    """What is known of a run's teacher.

    Attributes:
        row: Its row, see `make_rows`; held-out figures only where they are of the run's own tokens and masks.
        heldout: Its held-out figures by the name of the set.
        compares: Whether its held-out figures are of the run's own tokens and masks.
    """

    row: Row
    heldout: Mapping[str, Row]
    compares: bool = True


def make_row(run: Run) -> dict[str, Any]:
    """Return a run's figures: {model, what, each key of summary.json with held-out figures under their plain names}.

    The plain name of `heldout_mask_loss` is `mask_loss`, as in the rows of an evaluation.
    """
    figures = {key.removeprefix("heldout_"): value for key, value in run.summary.items()}
    return figures | {"model": run.label, "what": run.kind}


def make_rows(
    runs: Sequence[Run], teachers: Mapping[str, TeacherFigures], measured: Sequence[Row] = ()
) -> list[dict[str, Any]]:
    """Return the rows of runs that were trained on text, and of their teachers; the teacher of the first comes first.

    Args:
        runs: The runs.
        teachers: What is known of each run's teacher, by the run's label.
        measured: Rows {model, parameters, latency_ms, kept, each held-out figure} of models that were measured side by
            side, in the order to show. Their figures replace those of the run, or of the teacher, of the same name.
            Other models have rows of their own.
    """
    rows = {teacher.row["model"]: dict(teacher.row) for teacher in teachers.values()}
    rows |= {run.label: make_row(run) for run in runs}
    given = {row["model"]: row for row in measured}
    order = [*given, *(name for name in rows if name not in given)]
    return [rows.get(name, {}) | dict(given.get(name, {})) for name in order]


def find_teachers(runs: Sequence[Run], named: Sequence[Run], measured: Sequence[Row] = ()) -> dict[str, TeacherFigures]:
    """Return what is known of each distilled run's teacher, by the run's label.

    A teacher is the one of `named` that fits the run, or else the run among `runs` whose model it was distilled from,
    or else what the distillation has measured of it.

    Args:
        runs: All runs of the report.
        named: Those of them that were named as teachers.
        measured: As for `make_rows`.
    """
    given = {row["model"]: row for row in measured}
    teachers: dict[str, TeacherFigures] = {}
    for run in runs:
        if not run.has_teacher and not (run.is_finetuning and named) or any(run is other for other in named):
            continue
        found = _find_finetuned(run, runs, named) if run.is_finetuning else _find_pretrained(run, runs, named)
        if found is not None:
            teachers[run.label] = found
    pretrained = [teachers[run.label].row for run in runs if run.label in teachers and not run.is_finetuning]
    several = len({str(row) if row["model"] == TEACHER else row["model"] for row in pretrained}) > 1
    for label, teacher in teachers.items():
        name = teacher.row["model"]
        if name == TEACHER and several:
            teachers[label] = replace(teacher, row={**teacher.row, "model": f"teacher of {label}"})
        elif name in given:
            teachers[label] = replace(teacher, row={**teacher.row, **given[name]})
    return teachers


def _find_finetuned(run: Run, runs: Sequence[Run], named: Sequence[Run]) -> TeacherFigures | None:
    own = next((other for other in named if other.summary.get("task") == run.summary["task"]), None)
    own = own or next((other for other in runs if _is_inside(run.summary.get("teacher"), other)), None)
    return TeacherFigures(make_row(own), {}) if own else None


def _find_pretrained(run: Run, runs: Sequence[Run], named: Sequence[Run]) -> TeacherFigures | None:
    own = next((other for other in named if not other.is_finetuning), None)
    own = own or next((other for other in runs if _is_inside(run.record.get("teacher_folder"), other)), None)
    measured = {
        key.removeprefix("teacher_").removeprefix("heldout_"): value
        for key, value in run.summary.items()
        if key.startswith("teacher_")
    }
    heldout: Mapping[str, Row] = run.curves.teacher
    if own is None:
        return TeacherFigures({"model": TEACHER, "what": TEACHER} | measured, heldout) if measured else None
    row, compares = make_row(own), bool(heldout) or own.compares_with(run)
    if not compares:
        row = {key: value for key, value in row.items() if not key.startswith(("mask_", "mlm_"))}
    elif not heldout:
        heldout = {name: rows[-1] for name, rows in own.curves.heldout.items() if rows}
    return TeacherFigures(row | measured, heldout, compares)


def _is_inside(models: str | list[str] | None, run: Run) -> bool:
    """Return whether a model's path, as given to a run, or one of several, is another run's folder or lies in it."""
    given = [models] if isinstance(models, str) else models or []
    return any(Path(model).resolve().is_relative_to(RunFolder(run.path).path.resolve()) for model in given)


def find_baseline(run: Run, runs: Sequence[Run]) -> Run | None:
    """Return the run that trained the same student without the teacher, if there is one."""
    for other in runs:
        if not other.is_finetuning and not other.has_teacher and other.compares_with(run):
            if all(other.identity.get(key) == run.identity.get(key) for key in STUDENT_KEYS):
                return other
    return None


def heldout_kind(rows: Iterable[Row]) -> str:
    """Return the kind of positions that the page shows figures at, see `shared_kind`."""
    return shared_kind(row for row in rows if row.get("mask_loss") is not None or row.get("mlm_loss") is not None)


def divide(figure: float | None, error: float | None, whole: float | None, whole_error: float | None) -> Share | None:
    """Return figure / whole with the standard error of the quotient; None where there is no quotient.

    The errors are taken for independent. Both models are measured on the same tokens, where they tend to be right and
    wrong together, so that the true error is rather smaller.
    """
    if figure is None or not whole or whole < 0:
        return None
    if error is None or whole_error is None:
        return Share(figure / whole, None)
    return Share(figure / whole, math.hypot(error / whole, figure * whole_error / whole**2))


def divide_figures(row: Row, teacher: Row, key: str) -> Share | None:
    """Return the share of a figure of the teacher's row that a row has, such as "mask_accuracy" or "parameters"."""
    return divide(row.get(key), row.get(f"{key}_se"), teacher.get(key), teacher.get(f"{key}_se"))


def divide_scores(run: Run, teacher: Row) -> Share | None:
    """Return the share of the teacher's score that a fine-tuned run keeps: a quotient of medians over seeds."""
    metric = run.summary["metric"]
    whole = teacher.get("metrics", {}).get(metric)
    return divide(run.summary["metrics"][metric], score_error(run.summary), whole, score_error(teacher))


def score_error(summary: Row) -> float | None:
    """Return the standard error over seeds of a fine-tuning's score; None for fewer than two seeds."""
    scores = [seed[summary["metric"]] for seed in summary["seeds"] if seed[summary["metric"]] is not None]
    return statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
