"""The tables of paired comparisons: differences between models, and shares of the teacher, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from ds_distill.reporting.pages import Section
from ds_distill.study.bootstrap import CONFIDENCE, RESAMPLES, Estimate, estimate, resample_scores, share_of
from ds_distill.study.figures import NOT_MEASURED, get_students, task_headings
from ds_distill.study.outputs import TaskOutputs
from ds_distill.study.variants import TEACHER
from ds_distill.tasks.dev_outputs import CORRELATIONS

CONSTANT = ""  # the key of the constant answer among models, none of which has an empty name
Draws = dict[str, dict[str, np.ndarray]]  # by task and model, what `resample_scores` returns, in percent

INTERVAL = (
    f"Limits of {100 * CONFIDENCE:.0f} % intervals in parentheses, from a paired bootstrap of {RESAMPLES:,} draws. "
    "Each draw takes the examples of a dev set with replacement, the same for all models and seeds, and then the seeds "
    "of each model. Scores are means over seeds here, not medians. In the mean over tasks, the tasks are fixed. The "
    "intervals hold the variation of dev examples and of fine-tuning seeds, but not that of the pretraining, which ran "
    "once per student."
)
SHARES = (
    "Each model's score as a share of its teacher's, and its margin over the constant answer's score as a share of the "
    "teacher's margin. The constant answer is the one that scores best on the training labels if it is given to every "
    "example. Intervals, means and seeds are those of the paired comparisons. There is no share where "
    f"the teacher is not above the constant answer in {100 * CONFIDENCE:.0f} % of the draws."
)


def draw_scores(outputs: Mapping[str, TaskOutputs]) -> Draws:
    """Return the scores of all models and of the constant answer in every draw, in percent."""
    draws: Draws = {}
    for name, task in outputs.items():
        if not task.runs:
            continue
        first = next(iter(task.runs.values()))[0]
        terms = {
            model: [terms for run in runs if (terms := run.terms(task.metric)) is not None]
            for model, runs in task.runs.items()
        }
        constant = first.terms(task.metric, constant=True)
        scores = resample_scores(
            terms | ({CONSTANT: [constant]} if constant is not None else {}),
            partial(first.score, task.metric),
            task=name,
        )
        if task.metric in CORRELATIONS and CONSTANT in scores:
            scores[CONSTANT] = np.zeros_like(scores[CONSTANT])  # a constant correlates with nothing
        draws[name] = {model: 100 * values for model, values in scores.items()}
    return draws


def comparison_sections(rows: list[dict], tasks: list[str], outputs: Mapping[str, TaskOutputs]) -> list[Section]:
    """Return the tables of differences and of shares of the teacher; none where nothing can be compared.

    Args:
        rows: One row per model, from `collect_rows`.
        tasks: The study's tasks.
        outputs: The models' outputs, from `load_outputs`.
    """
    draws, students = draw_scores(outputs), [row["model"] for row in rows if row["model"] != TEACHER]
    remarks = _remarks(outputs)
    first = next((row["model"] for row in get_students(rows)), None)
    baselines = [name for name in (first, TEACHER) if name and any(row["model"] == name for row in rows)]
    columns = {"all": "mean of the tasks"} | task_headings(tasks, rows)
    lines = [
        {"model": model, "baseline": baseline}
        | {"all": _difference(draws, tasks, tasks, model, baseline)}
        | {task: _difference(draws, [task], tasks, model, baseline) for task in tasks}
        for baseline in baselines
        for model in students
        if model != baseline
    ]
    sections = []
    if _has_figures(lines):
        text = "Each model's score minus that of the model that it is compared with, in percentage points. "
        headings = {"model": "model", "baseline": "compared with"} | columns
        sections.append(Section("Paired comparisons", f"{text}{INTERVAL}{remarks}", lines, headings))
    elif any(task.problems for task in outputs.values()):
        sections.append(Section("Paired comparisons", f"None can be made.{remarks}"))
    shares = _share_section(draws, tasks, students, columns)
    return [*sections, shares] if _has_figures(shares.rows) else sections


def estimate_share(draws: Draws, tasks: list[str], model: str, *, above: bool = False) -> Estimate | None:
    """Return a model's mean over tasks as a share of its teacher's, in percent; None where it cannot be measured.

    Args:
        draws: From `draw_scores`.
        tasks: The tasks, at least one, on all of which both models have draws.
        model: The model.
        above: Whether the share is of what lies above the constant answer.
    """
    floor = _mean(draws, tasks, CONSTANT) if above else 0.0
    return estimate(100 * share_of(_mean(draws, tasks, model) - floor, _mean(draws, tasks, TEACHER) - floor))


def estimate_mean(draws: Draws, tasks: list[str], model: str) -> Estimate | None:
    """Return a model's mean over tasks, in percent; None where it cannot be measured."""
    return estimate(_mean(draws, tasks, model))


def _has_figures(lines: list[dict]) -> bool:
    return any(line["all"] != NOT_MEASURED for line in lines)


def _share_section(draws: Draws, tasks: list[str], students: list[str], columns: dict[str, str]) -> Section:
    lines = [
        {"model": model, "share": name, "all": _share(draws, tasks, tasks, model, above)}
        | {task: _share(draws, [task], tasks, model, above) for task in tasks}
        for model in students
        for name, above in (("of the score", False), ("above the constant answer", True))
    ]
    return Section(
        "Shares of the teacher with their intervals", SHARES, lines, {"model": "model", "share": "share"} | columns
    )


def _mean(draws: Draws, tasks: list[str], model: str) -> np.ndarray:
    return np.mean([draws[task][model] for task in tasks], axis=0)


def _shared(draws: Draws, tasks: list[str], *models: str) -> list[str]:
    return [task for task in tasks if all(model in draws.get(task, {}) for model in models)]


def _named(text: str, shared: list[str], tasks: list[str], all_tasks: list[str]) -> str:
    """Return the text of a cell, with the names of its tasks where they are not all that it should be of."""
    return text + (f", of {', '.join(shared)}" if tasks == all_tasks and len(shared) < len(tasks) else "")


def _difference(draws: Draws, tasks: list[str], all_tasks: list[str], model: str, baseline: str) -> str:
    shared = _shared(draws, tasks, model, baseline)
    if not shared:
        return NOT_MEASURED
    found = estimate(_mean(draws, shared, model) - _mean(draws, shared, baseline))
    if found is None:
        return NOT_MEASURED
    return _named(f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})", shared, tasks, all_tasks)


def _share(draws: Draws, tasks: list[str], all_tasks: list[str], model: str, above: bool) -> str:
    shared = _shared(draws, tasks, model, TEACHER, *([CONSTANT] if above else []))
    found = estimate_share(draws, shared, model, above=above) if shared else None
    if found is None:
        return NOT_MEASURED
    return _named(f"{found.value:.1f} % ({found.low:.1f} to {found.high:.1f})", shared, tasks, all_tasks)


def _remarks(outputs: Mapping[str, TaskOutputs]) -> str:
    """Return which models cannot be compared and why, and whose intervals hold no variance of seeds."""
    remarks = [
        f"{task}: {model} is not compared: {problem}."
        for task, part in outputs.items()
        for model, problem in part.problems.items()
    ]
    single = {task: [model for model, runs in part.runs.items() if len(runs) == 1] for task, part in outputs.items()}
    if any(single.values()):
        where = "; ".join(f"{task}: {', '.join(models)}" for task, models in single.items() if models)
        remarks.append(f"One seed, so that an interval holds the variation of examples alone: {where}.")
    return "".join(f"\n\n{remark}" for remark in remarks)
