"""The tables of task scores: GLUE and other tasks, further metrics, and shares of the teacher's scores."""

from __future__ import annotations

import statistics

from ds_distill.reporting.pages import Section
from ds_distill.study.figures import (
    find_teacher,
    format_score,
    mean_score,
    missing_mean_text,
    retained_share,
    task_headings,
)
from ds_distill.study.paper import PAPER_EXACT_MATCH, PAPER_SCORES
from ds_distill.study.plan import TASK_DISTILLATION
from ds_distill.tasks.catalog import GLUE, TASKS

OTHER_TASKS = tuple(task for task in TASKS if task not in GLUE)


def task_tables(rows: list[dict], tasks: list[str]) -> list[Section]:
    """Return tables 1 and 2: one row per model with the share it keeps of its teacher, and the paper's rows."""
    teacher = find_teacher(rows)
    sections = []
    precisions = {
        seed["precision"]
        for row in rows
        for result in row["tasks"].values()
        for seed in result["seeds"]
        if "precision" in seed
    }
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
                | {task: format_score(row["tasks"].get(task)) for task in shown_tasks}
            )
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
        columns |= task_headings(shown_tasks, rows)
        text = (
            "Scores in percent: medians over seeds, with the lowest and the highest in parentheses. The paper's rows "
            "are for comparison; they have the paper's own teacher and data, and the paper does not state which of a "
            "task's metrics it reports."
        )
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
    lines = [
        {"model": row["model"], "all": retained_share(row, teacher, tasks)}
        | {task: retained_share(row, teacher, [task]) for task in tasks}
        for row in rows
        if row is not teacher
    ]
    columns = {"model": "model", "all": "share of the mean of all tasks"} | task_headings(tasks, rows)
    text = (
        "Each model's score as a share of its teacher's; medians over seeds. The paper's DistilBERT retains 97 % of "
        "BERT-base's mean on GLUE."
    )
    return Section("Share of the teacher's scores that is retained", text, lines, columns)


def data_set_table(rows: list[dict]) -> Section | None:
    """Return the table of how large the tasks' data sets are, or None if no task was run."""
    sizes = {task: result for row in rows for task, result in row["tasks"].items() if "examples" in result}
    if not sizes:
        return None
    lines = []
    for task, result in sizes.items():
        train, dev = result["examples"]["train"], result["examples"]["dev"]
        points = f"{100 / dev:.2f}" if result["metric"] == "accuracy" else "–"
        truncated = sum(result["truncated"].values()) if "truncated" in result else None
        skipped = sum(count for causes in result.get("left_out", {}).values() for count in causes.values())
        lines.append(
            {"task": task, "train": train, "dev": dev, "points": points, "truncated": truncated, "skipped": skipped}
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
