"""The report of studies, laid out like tables 1 to 4 of the paper (Sanh et al. 2019).

The paper's own figures stand in rows of their own and are marked as such.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from ds_distill.reporting.pages import Section, write_page
from ds_distill.reporting.plots import comparison_plot
from ds_distill.reporting.tables import NOT_RUN, table
from ds_distill.study.plan import TASK_DISTILLATION, TEACHER, TOKENS, Study, folder_of, rows_of
from ds_distill.tasks.catalog import TASKS
from ds_distill.training.state import read_heldout_curves
from ds_distill.utils.errors import UserError

GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
OTHERS = ("imdb", "squad", "squad_v2")
# Tables 1 and 2, in percent. BERT-base's MNLI is the authors' 84.7: with it, the nine scores have
# the printed mean, 79.5.
PAPER = {
    "BERT-base, the paper's": dict(
        zip((*GLUE, "imdb", "squad"), (56.3, 84.7, 88.6, 91.8, 89.6, 69.3, 92.7, 89.0, 53.5, 93.46, 88.5), strict=True)
    ),
    "DistilBERT, the paper's": dict(
        zip((*GLUE, "imdb", "squad"), (51.3, 82.2, 87.5, 89.2, 88.5, 59.9, 91.3, 86.9, 56.3, 92.82, 85.8), strict=True)
    ),
    "DistilBERT, task distillation, the paper's": {"squad": 86.9},
}
# These are exact matches on SQuAD 1.1, from table 2.
EXACT = {
    "BERT-base, the paper's": 81.2,
    "DistilBERT, the paper's": 77.7,
    "DistilBERT, task distillation, the paper's": 79.1,
}
# These are differences of the GLUE mean, from table 4.
ABLATION = {
    "without KL": -2.96,
    "without cosine": -1.46,
    "without masked LM": -0.31,
    "random start": -3.69,
}
NOT_MEASURED = "–"  # shown where there was nothing to measure a figure on
OWN = "the corpus's own documents"
# These settings decide which tokens are held out, and which of them are masked.
HELDOUT = (
    *TOKENS,
    "data.mlm_probability",
    "data.mlm_smoothing",
    "data.whole_word_masking",
    "data.attend_across_documents",
    "training.seed",
    "training.eval_max_sequences",
)


def score(found: dict | None, metric: str = "") -> str:
    """Return a task's median in percent, with the range of its seeds from lowest to highest.

    The metric is the task's first unless `metric` names another.
    """
    if not found:
        return NOT_RUN
    metric = metric or found["metric"]
    middle, values = (
        found["metrics"][metric],
        [100 * seed[metric] for seed in found["seeds"] if seed[metric] is not None],
    )
    if middle is None:
        return NOT_MEASURED
    if len(found["seeds"]) == 1:
        return f"{100 * middle:.1f}"
    few = "" if len(values) == len(found["seeds"]) else f", {len(values)} of {len(found['seeds'])} seeds"
    return f"{100 * middle:.1f} ({min(values):.1f}–{max(values):.1f}{few})"


def mean_of(row: dict, tasks: list[str]) -> float | None:
    """Return the mean of the medians over `tasks` in percent.

    The mean is None if one of the tasks was not run or could not be measured.
    """
    scores = [row["tasks"].get(task, {"metric": "", "metrics": {"": None}}) for task in tasks]
    medians = [found["metrics"][found["metric"]] for found in scores]
    return None if not tasks or None in medians else statistics.mean(100 * middle for middle in medians)


def without_mean(row: dict | None, tasks: list[str]) -> str:
    """Return the text that is shown in place of a missing mean."""
    return NOT_MEASURED if row and tasks and all(task in row["tasks"] for task in tasks) else NOT_RUN


def kept(row: dict, teacher: dict | None, tasks: list[str]) -> str:
    """Return a model's mean as a share of its teacher's, over the tasks that both were run on.

    The text names these tasks where they are not all of `tasks`.
    """
    both = [task for task in tasks if teacher and task in row["tasks"] and task in teacher["tasks"]]
    mean, its = mean_of(row, both), mean_of(teacher, both) if teacher else None
    if mean is None or its is None:
        return without_mean(row, both)
    if its <= 0:
        return NOT_MEASURED
    return f"{100 * mean / its:.1f} %" + (f", of {', '.join(both)}" if len(both) < len(tasks) else "")


def means_by_seed(row: dict, tasks: list[str]) -> list[float | None]:
    """Return each seed's mean over `tasks` in percent; None where a task could not be measured."""
    seeds = min((len(row["tasks"][task]["seeds"]) for task in tasks), default=0)
    each = [[row["tasks"][task]["seeds"][i][row["tasks"][task]["metric"]] for task in tasks] for i in range(seeds)]
    return [None if None in scores else statistics.mean(100 * score for score in scores) for scores in each]


def teacher_of(rows: list[dict]) -> dict | None:
    """Return the teacher's row, or None."""
    return next((row for row in rows if row["model"] == TEACHER), None)


def students_of(rows: list[dict]) -> list[dict]:
    """Return one row per distilled student, without the teacher and without task distillations."""
    return [row for row in rows if row["model"] != TEACHER and not row["model"].endswith(f", {TASK_DISTILLATION}")]


def headings(tasks: list[str]) -> dict[str, str]:
    """Return one column heading per task, with the metric that is shown."""
    return {task: f"{task} ({TASKS[task].metrics[0]})" for task in tasks}


def task_tables(rows: list[dict], tasks: list[str]) -> list[Section]:
    """Return tables 1 and 2: one row per model with the share it keeps of its teacher, and the paper's rows."""
    teacher = teacher_of(rows)
    sections = []
    precisions = {
        seed["precision"]
        for row in rows
        for found in row["tasks"].values()
        for seed in found["seeds"]
        if "precision" in seed
    }
    for heading, names in (("Scores on GLUE's dev sets", GLUE), ("IMDb and SQuAD", OTHERS)):
        here = [task for task in names if task in tasks]
        if not here:
            continue
        lines = []
        for row in rows:
            mean = mean_of(row, here)
            lines.append(
                {
                    "model": row["model"],
                    "parameters": f"{row['parameters'] / 1e6:.1f}" if "parameters" in row else "–",
                    "mean": without_mean(row, here) if mean is None else f"{mean:.1f}",
                    "kept": kept(row, teacher, here),
                }
                | {task: score(row["tasks"].get(task)) for task in here}
            )
        first = next((row["model"] for row in rows if row is not teacher), "")  # the study's main student
        marked = tuple(i for i, row in enumerate(rows) if row["model"] in (first, f"{first}, {TASK_DISTILLATION}"))
        for name, values in PAPER.items():
            shown = {task: f"{values[task]:.1f}" if task in values else "–" for task in here}
            both = [values[task] for task in here if task in values]
            if not both:
                continue
            whole = f"{statistics.mean(both):.1f}" if len(both) == len(here) else "–"
            lines.append(
                {"model": name, "parameters": "110" if name.startswith("BERT") else "66", "mean": whole, "kept": "–"}
                | shown
            )
        columns = {"model": "model", "parameters": "parameters (M)", "mean": "mean"} | (
            {"kept": "of the teacher's mean"} if teacher else {}
        )
        columns |= headings(here)
        text = (
            "Per cent; medians over seeds, lowest and highest in brackets. The paper's rows are of its own "
            "teacher and data, for comparison; it does not say which of a task's metrics they are."
        )
        if "squad_v2" in here:
            text += (
                " Of squad_v2 the best threshold for saying nothing is taken, as by the official script's "
                "best_f1: chosen on what it is scored by."
            )
        if len(precisions) > 1:
            text += f" Not all were fine-tuned in one precision, but some in each of {', '.join(sorted(precisions))}."
        sections.append(Section(heading, text, lines, columns, marked))
    return sections


def other_metrics(rows: list[dict], tasks: list[str]) -> Section | None:
    """Return the table of the tasks' other metrics and the paper's exact matches, or None if there are none."""
    columns: dict[str, tuple[str, str]] = {}
    for row in rows:
        for task in tasks:
            found = row["tasks"].get(task, {"metric": "", "metrics": {}})
            columns |= {
                f"{task} {name}": (task, name)
                for name in found["metrics"]
                if name not in (found["metric"], "threshold")
            }
    if not columns:
        return None
    lines = [
        {"model": row["model"]} | {key: score(row["tasks"].get(task), name) for key, (task, name) in columns.items()}
        for row in rows
    ]
    if "squad exact_match" in columns:
        lines += [{"model": name, "squad exact_match": f"{value:.1f}"} for name, value in EXACT.items()]
    headings = {key: f"{task} ({name.replace('_', ' ')})" for key, (task, name) in columns.items()}
    return Section("By the tasks' other metrics", "Per cent, as above.", lines, {"model": "model"} | headings)


def kept_table(rows: list[dict], tasks: list[str]) -> Section | None:
    """Return each model's score as a share of its teacher's, over all tasks and on each task."""
    teacher = teacher_of(rows)
    if teacher is None or len(tasks) < 2:
        return None
    lines = [
        {"model": row["model"], "all": kept(row, teacher, tasks)} | {task: kept(row, teacher, [task]) for task in tasks}
        for row in rows
        if row is not teacher
    ]
    columns = {"model": "model", "all": "of the mean of all tasks"} | headings(tasks)
    text = (
        "A model's score as a share of its teacher's, medians over seeds; the paper's DistilBERT keeps 97 % "
        "of BERT-base's mean on GLUE."
    )
    return Section("What is kept of the teacher's scores", text, lines, columns)


def in_nats(loss: float | None) -> str:
    """Return a loss as text, or the mark of a figure that was not measured."""
    return NOT_MEASURED if loss is None else f"{loss:.3f}"


def differ_in(students: dict[str, dict]) -> set[str]:
    """Return the settings that are not the same for all students of a plan."""
    first, *others = students.values()
    return {key for changes in others for key in first | changes if changes.get(key) != first.get(key)}


def taken_away(students: dict[str, dict]) -> bool:
    """Return whether each further student of a plan is the first one without something.

    That something is a loss, or the start from the teacher's layers.
    """
    first, *others = students.values()

    def without(key: str, value) -> bool:
        return value == 0 if key.startswith("losses.") else key == "student.init_layers" and value == "random"

    return all(
        changes.get(key) == first.get(key) or without(key, changes.get(key))
        for key in differ_in(students)
        for changes in others
    )


def ablation_table(rows: list[dict], tasks: list[str], plan: dict[str, dict]) -> Section | None:
    """Return table 4: how each student's mean differs from the first one's.

    The table also has the range of that difference over seeds.

    Args:
        rows: One row per model, from `rows_of`.
        tasks: The tasks that the mean is over.
        plan: The settings of each student.
    """
    students = students_of(rows)
    if len(students) < 3:
        return None
    first, lines = students[0], []
    for row in students:
        mean, whole = mean_of(row, tasks), mean_of(first, tasks)
        line = {
            "student": row["model"],
            "loss": in_nats(row["heldout_mlm_loss"]) if "heldout_mlm_loss" in row else NOT_RUN,
        }
        line["mean"] = without_mean(row, tasks) if mean is None else f"{mean:.1f}"
        if row is not first:
            line["difference"] = without_mean(row if mean is None else first, tasks)
            if mean is not None and whole is not None:
                line["difference"] = f"{mean - whole:+.2f}"
                pairs = zip(means_by_seed(row, tasks), means_by_seed(first, tasks), strict=False)
                gaps = [a - b for a, b in pairs if a is not None and b is not None]
                line["spread"] = f"{min(gaps):+.2f} to {max(gaps):+.2f}" if len(gaps) > 1 else "one seed"
                if len({len(row["tasks"][task]["seeds"]) for task in tasks}) > 1:
                    line["spread"] += f", the first {len(gaps)} of each task" if len(gaps) > 1 else " of each task"
            line["paper"] = f"{ABLATION[row['model']]:+.2f}" if row["model"] in ABLATION else "–"
        lines.append(line)
    columns = {
        "student": "student",
        "loss": "held-out MLM loss (nats)",
        "mean": f"mean of {', '.join(tasks)}",
        "difference": f"against {first['model']}",
        "spread": "by seed",
    }
    if any(row["model"] in ABLATION for row in students):
        columns["paper"] = "the paper's difference, of GLUE's mean"
    if taken_away(plan):
        return Section(
            "Ablation",
            "The same student, tokens, batches and masks; one thing taken away at a time.",
            lines,
            columns,
            (0,),
        )
    return Section(
        "One student against another", f"They differ in {', '.join(sorted(differ_in(plan)))}.", lines, columns, (0,)
    )


def pretraining(study: Path, rows: list[dict], picture: Path, plan: dict[str, dict]) -> Section | None:
    """Return the section on the students' pretraining: held-out losses at its end and over tokens.

    Args:
        study: The study's folder.
        rows: One row per model, from `rows_of`.
        picture: The file that the plot is written to.
        plan: The settings of each student.
    """
    found, lines, first = {}, [], None
    for row in students_of(rows):
        file = study / "students" / folder_of(row["model"]) / "curves.json"
        if file.is_file() and "heldout_mlm_loss" in row:  # The summary is written last.
            found[row["model"]] = {key or OWN: rows for key, rows in read_heldout_curves(file.parent).items()}
            rate = row.get("tokens_per_second")  # A run that resumed after its last step has no rate.
            seconds = row["tokens"] / rate if rate else None
            first = first or seconds
            losses = {OWN: row["heldout_mlm_loss"]} | {
                name: figures["mlm_loss"] for name, figures in row.get("heldout_sets", {}).items()
            }
            lines.append(
                {
                    "model": row["model"],
                    "tokens": f"{row['tokens']:,}",
                    "time": f"{seconds / first:.2f}" if seconds else "–",
                }
                | {name: in_nats(loss) for name, loss in losses.items()}
            )
        else:
            lines.append({"model": row["model"], "tokens": NOT_RUN, "time": NOT_RUN})
    if not found:
        return None
    comparison_plot(found, picture)
    texts = list(dict.fromkeys(key for line in lines for key in line if key not in ("model", "tokens", "time")))
    lines = [dict.fromkeys(texts, NOT_RUN) | line for line in lines]
    columns = {"model": "student", "tokens": "tokens read", "time": "time (first = 1)"} | {
        text: f"loss, {text}" for text in texts
    }
    text = (
        "Held-out masked-LM loss at the end, nats a masked token. Times are as each was run, with what ran beside it."
    )
    if unlike := sorted(key for key in differ_in(plan) if key in HELDOUT):
        text += (
            f" Not one and the same text under the same masks: they differ in {', '.join(unlike)}, so the "
            "losses do not compare them."
        )
    return Section(
        "Pretraining", text, lines, columns, pictures={"Held-out masked-LM loss over tokens, by text.": picture}
    )


def report(folders: list[str], output: Path) -> dict:
    """Write output/report.html and output/report.md on the studies and benchmark reports in `folders`.

    Raises:
        UserError: If there is nothing to report.
    """
    sections: list[Section] = []
    for number, folder in enumerate(map(Path, folders)):
        made = len(sections)
        if (folder / "study.json").is_file():
            output.mkdir(parents=True, exist_ok=True)
            sections += of_study(folder, output / f"curves_{number}.png")
        for name in ("table3.json", "inference.json"):
            if (folder / name).is_file():
                sections.append(of_benchmark(json.loads((folder / name).read_text(encoding="utf-8")), name))
        if len(sections) == made and (folder / "study.json").is_file():
            raise UserError(
                f"{folder}: a study without tasks of which no student is there yet; the study's own command goes on"
            )
        if len(sections) == made:
            raise UserError(
                f"{folder}: neither a study (study.json) nor a benchmark's report (table3.json, "
                "inference.json); give the --output of one"
            )
        if len(folders) > 1:
            for section in sections[made:]:
                section.heading += f" ({folder})"
    write_page(
        output,
        "report",
        "What the student keeps",
        f"Made from {', '.join(f'`{folder}`' for folder in folders)}.",
        sections,
    )
    for section in sections:
        if section.rows:
            print(f"\n{section.heading}\n\n{table(section.rows, section.columns)}")
    return {
        "report": str(output / "report.html"),
        "markdown": str(output / "report.md"),
        "sections": [section.heading for section in sections],
    }


def of_study(folder: Path, picture: Path) -> list[Section]:
    """Return the sections on what a study has run so far."""
    plan = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    rows = rows_of(Study.of(plan), folder)
    sections = [section for section in (kept_table(rows, plan["tasks"]),) if section] + task_tables(rows, plan["tasks"])
    if others := other_metrics(rows, plan["tasks"]):
        sections.append(others)
    if ablation := ablation_table(rows, plan["tasks"], plan["students"]):
        sections.append(ablation)
    if section := pretraining(folder, rows, picture, plan["students"]):
        sections.append(section)
    sizes = {task: found for row in rows for task, found in row["tasks"].items() if "examples" in found}
    if sizes:
        lines = []
        for task, found in sizes.items():
            train, dev = found["examples"]["train"], found["examples"]["dev"]
            one = f"{100 / dev:.2f}" if TASKS[task].metrics[0] == "accuracy" else "–"
            cut = sum(found["truncated"].values()) if "truncated" in found else None
            gone = sum(count for causes in found.get("left_out", {}).values() for count in causes.values())
            lines.append({"task": task, "train": train, "dev": dev, "one": one, "cut": cut, "gone": gone})
        columns = {
            "task": "task",
            "train": "training examples used",
            "dev": "dev examples",
            "one": "one dev example is worth (points)",
        }
        columns |= {
            key: heading
            for key, heading in (("cut", "longer than what is read"), ("gone", "left out"))
            if any(line[key] for line in lines)
        }
        sections.append(
            Section(
                "How large the sets are",
                "Differences of a few examples are noise; that is why there are seeds.",
                lines,
                columns,
            )
        )
    return sections


def of_benchmark(found: dict, name: str) -> Section:
    """Return the section on a benchmark's report, table3.json or inference.json."""
    if name == "table3.json":
        lines = [
            row | {key: f"{row[key]:.{digits}f}" for key, digits in (("parameters", 1), ("seconds", 1), ("share", 3))}
            for row in found["rows"]
        ]
        columns = {
            "model": "model",
            "body": "body",
            "parameters": "parameters (M)",
            "seconds": "time (s)",
            "share": "of BERT-base's",
            "memory": "runs within (MB)",
            "paper_parameters": "the paper's parameters (M)",
            "paper_seconds": "the paper's time (s)",
            "paper_share": "the paper's share",
        }
        columns = {key: name for key, name in columns.items() if any(key in line for line in lines)}
        about = (
            f"A full pass over {found['examples']:,} examples of {found['data']}, one thread, one at a "
            f"time; {found['machine']}."
        )
        return Section("Size and speed", about, lines, columns)
    lines = [
        {"figure": key.replace("_", " "), "value": json.dumps(value).replace('"', "")}
        for key, value in found["summary"].items()
    ]
    return Section("Inference", found["machine"], lines, {"figure": "figure", "value": "value"})
