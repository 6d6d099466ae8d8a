"""The figures of a study's rows, as numbers and as the text of table cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ds_distill.reporting.heldout import shared_kind, with_error
from ds_distill.reporting.tables import NOT_RUN
from ds_distill.study.variants import TEACHER
from ds_distill.tasks.catalog import TASKS

CONSTANT_ANSWER = "constant answer"
NOT_MEASURED = "–"  # shown where there was nothing to measure a figure on


def format_score(result: dict | None, metric: str = "") -> str:
    """Return a task's median in percent, with the range of its seeds from lowest to highest.

    The metric is the task's first unless `metric` names another.
    """
    if not result:
        return NOT_RUN
    metric = metric or result["metric"]
    middle = result["metrics"].get(metric)  # a task may have been given a metric since
    values = [100 * seed[metric] for seed in result["seeds"] if seed.get(metric) is not None]
    if middle is None:
        return NOT_MEASURED
    if len(result["seeds"]) == 1:
        return f"{100 * middle:.1f}"
    missing = "" if len(values) == len(result["seeds"]) else f", {len(values)} of {len(result['seeds'])} seeds"
    return f"{100 * middle:.1f} ({min(values):.1f}–{max(values):.1f}{missing})"


def mean_score(row: dict, tasks: list[str]) -> float | None:
    """Return the mean of the medians over `tasks` in percent.

    The mean is None if one of the tasks was not run or could not be measured.
    """
    scores = [row["tasks"].get(task, {"metric": "", "metrics": {"": None}}) for task in tasks]
    medians = [result["metrics"][result["metric"]] for result in scores]
    return None if not tasks or None in medians else statistics.mean(100 * middle for middle in medians)


def missing_mean_text(row: dict | None, tasks: list[str]) -> str:
    """Return the text that is shown in place of a missing mean."""
    return NOT_MEASURED if row and tasks and all(task in row["tasks"] for task in tasks) else NOT_RUN


def retained_share(row: dict, teacher: dict | None, tasks: list[str], constant: dict | None = None) -> str:
    """Return a model's mean as a share of its teacher's, over the tasks that both were run on.

    With the row of the constant answer, the share is of what lies above its mean; some tasks have none. The text
    names the tasks where they are not all of `tasks`.
    """
    others = [teacher or {"tasks": {}}, *([constant] if constant else [])]
    run = [task for task in tasks if task in row["tasks"] and task in others[0]["tasks"]]
    shared = [task for task in run if task in others[-1]["tasks"]]
    if run and not shared:
        return NOT_MEASURED
    means = [mean_score(other, shared) for other in (row, *others)]
    if None in means:
        return missing_mean_text(row, shared)
    mean, teacher_mean, floor = cast(list[float], [*means, 0.0][:3])
    if teacher_mean <= floor:
        return NOT_MEASURED
    share = 100 * (mean - floor) / (teacher_mean - floor)
    return f"{share:.1f} %" + (f", of {', '.join(shared)}" if len(shared) < len(tasks) else "")


def make_constant_row(rows: list[dict]) -> dict | None:
    """Return the constant answer's scores in the form of a model's row; None where no task has them."""
    tasks: dict[str, dict] = {}
    for row in rows:
        for task, result in row["tasks"].items():
            if scores := result.get("constant"):
                scores = dict.fromkeys(result["metrics"]) | scores
                tasks.setdefault(task, {"metric": result["metric"], "metrics": scores, "seeds": [scores]})
    return {"model": CONSTANT_ANSWER, "tasks": tasks} if tasks else None


def means_by_seed(row: dict, tasks: list[str]) -> list[float | None]:
    """Return each seed's mean over `tasks` in percent; None where a task could not be measured."""
    seeds = min((len(row["tasks"][task]["seeds"]) for task in tasks), default=0)
    each = [[row["tasks"][task]["seeds"][i][row["tasks"][task]["metric"]] for task in tasks] for i in range(seeds)]
    return [
        None if None in scores else statistics.mean(100 * format_score for format_score in scores) for scores in each
    ]


def find_teacher(rows: list[dict]) -> dict | None:
    """Return the teacher's row, or None."""
    return next((row for row in rows if row["model"] == TEACHER), None)


def get_students(rows: list[dict]) -> list[dict]:
    """Return one row per distilled student, without the teacher and without further fine-tunings."""
    return [row for row in rows if row["model"] != TEACHER and "student" not in row]


def task_headings(tasks: list[str], rows: list[dict]) -> dict[str, str]:
    """Return one column heading per task, with the metric that is shown.

    A user's own task has the metric of its results; without any, the heading names none.
    """
    measured = {task: result["metric"] for row in rows for task, result in row["tasks"].items()}
    metrics = {task: TASKS[task].metrics[0] if task in TASKS else measured.get(task, "") for task in tasks}
    return {task: f"{task} ({metric.replace('_', ' ')})" if metric else task for task, metric in metrics.items()}


def format_loss(figures: Mapping[str, Any], key: str) -> str:
    """Return a held-out loss with its standard error as text, or the mark of a figure that was not measured."""
    return with_error(figures[key], figures.get(f"{key}_se"))


def heldout_kind(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the kind of positions at which the losses of all finished students can be compared."""
    return shared_kind((row for row in rows if "heldout_mlm_loss" in row), "heldout_")
