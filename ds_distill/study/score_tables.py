"""The tables of task scores: GLUE and other tasks, further metrics, and shares of the teacher's scores."""

from __future__ import annotations

import statistics

from ds_distill.reporting.pages import Section
from ds_distill.reporting.tables import NOT_RUN
from ds_distill.study.figures import (
    NOT_MEASURED,
    find_teacher,
    format_score,
    make_constant_row,
    mean_score,
    missing_mean_text,
    retained_share,
    task_headings,
)
from ds_distill.study.paper import PAPER_EXACT_MATCH, PAPER_SCORES
from ds_distill.study.variants import TASK_DISTILLATION
from ds_distill.tasks.catalog import GLUE, TASKS

OTHER_TASKS = tuple(task for task in TASKS if task not in GLUE)


CONSTANT_TEXT = (
    "The constant answer is the one that scores best on the training labels if it is given to every example: for "
    "accuracy the most frequent class, for F1 the class that it is of, for a correlation any (its score counts as 0), "
    "for SQuAD no answer. The share above the constant answer is (model − constant) / (teacher − constant)."
)


def _constant_line(constant: dict, tasks: list[str]) -> dict[str, str]:
    """Return the line of the constant answer, which some tasks do not have."""
    mean, scores = mean_score(constant, tasks), constant["tasks"]
    return {
        "model": constant["model"],
        "parameters": "–",
        "mean": NOT_MEASURED if mean is None else f"{mean:.1f}",
        "kept": "–",
        "above": "–",
    } | {task: format_score(scores[task]) if task in scores else NOT_MEASURED for task in tasks}


def task_tables(rows: list[dict], tasks: list[str]) -> list[Section]:
    """Return tables 1 and 2: one row per model with the share it keeps of its teacher, and the paper's rows."""
    teacher, constant = find_teacher(rows), make_constant_row(rows)
    sections = []
    seeds = [seed for row in rows for result in row["tasks"].values() for seed in result["seeds"]]
    # earlier versions called it precision, as a metric of tags is called
    formats = [seed.get("number_format", seed.get("precision")) for seed in seeds]
    precisions = {given for given in formats if isinstance(given, str)}
    others = (*OTHER_TASKS, *(task for task in tasks if task not in TASKS))
    for heading, names in (("Scores on GLUE's dev sets", GLUE), ("Scores on other tasks", others)):
        shown_tasks = [task for task in names if task in tasks]
        if not shown_tasks:
            continue
        lines = []
        for row in rows:
            mean = mean_score(row, shown_tasks)
            lines.append(
                {
                    "model": row["model"],
                    "parameters": f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "–",
                    "mean": missing_mean_text(row, shown_tasks) if mean is None else f"{mean:.1f}",
                    "kept": retained_share(row, teacher, shown_tasks),
                }
                | ({"above": retained_share(row, teacher, shown_tasks, constant)} if constant else {})
                | {task: format_score(row["tasks"].get(task)) for task in shown_tasks}
            )
        if constant:
            lines.append(_constant_line(constant, shown_tasks))
        first = next((row["model"] for row in rows if row is not teacher), "")  # the study's main student
        marked = tuple(i for i, row in enumerate(rows) if row["model"] in (first, f"{first}, {TASK_DISTILLATION}"))
        for name, values in PAPER_SCORES.items():
            shown = {task: f"{values[task]:.1f}" if task in values else "–" for task in shown_tasks}
            both = [values[task] for task in shown_tasks if task in values]
            if not both:
                continue
            paper_mean = f"{statistics.mean(both):.1f}" if len(both) == len(shown_tasks) else "–"
            lines.append(
                {
                    "model": name,
                    "parameters": "110" if name.startswith("BERT") else "66",
                    "mean": paper_mean,
                    "kept": "–",
                }
                | shown
            )
        columns = {"model": "model", "parameters": "parameters (M)", "mean": "mean"} | (
            {"kept": "share of the teacher's mean"} if teacher else {}
        )
        columns |= {"above": "share above the constant answer"} if teacher and constant else {}
        columns |= task_headings(shown_tasks, rows)
        text = (
            "Scores in percent: medians over seeds, with the lowest and the highest in parentheses. The paper's rows "
            "are for comparison; they have the paper's own teacher and data, and the paper does not state which of a "
            "task's metrics it reports."
        )
        if constant:
            text += f" {CONSTANT_TEXT}"
        if "squad_v2" in shown_tasks:
            text += (
                " For squad_v2, the threshold for giving no answer is the best one on the scored set itself, as in the "
                "official script's best_f1."
            )
        if len(precisions) > 1:
            text += f" The precision of fine-tuning differs: {', '.join(sorted(precisions))}."
        sections.append(Section(heading, text, lines, columns, marked))
    return sections


def other_metrics_table(rows: list[dict], tasks: list[str]) -> Section | None:
    """Return the table of the tasks' other metrics and the paper's exact matches, or None if there are none."""
    columns: dict[str, tuple[str, str]] = {}
    for row in rows:
        for task in tasks:
            result = row["tasks"].get(task, {"metric": "", "metrics": {}})
            columns |= {
                f"{task} {name}": (task, name)
                for name in result["metrics"]
                if name not in (result["metric"], "threshold")
            }
    if not columns:
        return None
    lines = [
        {"model": row["model"]}
        | {key: format_score(row["tasks"].get(task), name) for key, (task, name) in columns.items()}
        for row in rows
    ]
    if constant := make_constant_row(rows):
        lines.append(
            {"model": constant["model"]}
            | {key: format_score(constant["tasks"].get(task), name) for key, (task, name) in columns.items()}
        )
    if "squad exact_match" in columns:
        lines += [{"model": name, "squad exact_match": f"{value:.1f}"} for name, value in PAPER_EXACT_MATCH.items()]
    column_headings = {key: f"{task} ({name.replace('_', ' ')})" for key, (task, name) in columns.items()}
    return Section(
        "Other metrics of the tasks", "Scores in percent, as above.", lines, {"model": "model"} | column_headings
    )


def retention_table(rows: list[dict], tasks: list[str]) -> Section | None:
    """Return each model's score as a share of its teacher's, over all tasks and on each task."""
    teacher = find_teacher(rows)
    if teacher is None or len(tasks) < 2:
        return None
    constant = make_constant_row(rows)

    def share(row: dict, shown: list[str]) -> str:
        kept = retained_share(row, teacher, shown)
        if not constant or kept in (NOT_RUN, NOT_MEASURED):
            return kept
        above = retained_share(row, teacher, shown, constant)
        return kept if above == NOT_MEASURED else f"{kept} ({above})"

    lines = [
        {"model": row["model"], "all": share(row, tasks)} | {task: share(row, [task]) for task in tasks}
        for row in rows
        if row is not teacher
    ]
    columns = {"model": "model", "all": "share of the mean of all tasks"} | task_headings(tasks, rows)
    text = (
        "Each model's score as a share of its teacher's; medians over seeds. The paper's DistilBERT retains 97 % of "
        "BERT-base's mean on GLUE."
    )
    if constant:
        text += f" In parentheses is the share above the constant answer. {CONSTANT_TEXT}"
    return Section("Share of the teacher's scores that is retained", text, lines, columns)


def data_set_table(rows: list[dict]) -> Section | None:
    """Return the table of how large the tasks' data sets are, or None if no task was run."""
    by_task: dict[str, list[dict]] = {}
    for row in rows:
        for task, result in row["tasks"].items():
            if "examples" in result:
                by_task.setdefault(task, []).append(result)
    if not by_task:
        return None
    lines = []
    for task, results in by_task.items():
        dev = results[0]["examples"]["dev"]
        lines.append(
            {
                "task": task,
                "train": _range([result["examples"]["train"] for result in results]),
                "dev": dev,
                "points": f"{100 / dev:.2f}" if results[0]["metric"] == "accuracy" else "–",
                "truncated": _range([sum(result["truncated"].values()) for result in results if "truncated" in result]),
                "skipped": _range(
                    [sum(sum(causes.values()) for causes in result.get("left_out", {}).values()) for result in results]
                ),
            }
        )
    columns = {
        "task": "task",
        "train": "training examples used",
        "dev": "dev examples",
        "points": "points per dev example",
    }
    columns |= {key: key for key in ("truncated", "skipped") if any(line[key] for line in lines)}
    return Section(
        "Sizes of the data sets",
        "Differences of a few examples are noise, so each model is trained with several seeds.",
        lines,
        columns,
    )


def _range(counts: list[int]) -> int | str | None:
    """Return the count that all models have, or the least and the greatest; None without any."""
    if len(set(counts)) < 2:
        return counts[0] if counts else None
    return f"{min(counts):,}–{max(counts):,}"
