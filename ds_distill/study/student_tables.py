"""The sections that compare a study's students: ablations, and pretraining with its plot."""

from __future__ import annotations

from pathlib import Path

from ds_distill.reporting.heldout import POSITIONS
from ds_distill.reporting.pages import Section
from ds_distill.reporting.plots import comparison_plot
from ds_distill.reporting.tables import NOT_RUN
from ds_distill.study.figures import (
    format_loss,
    get_students,
    heldout_kind,
    mean_score,
    means_by_seed,
    missing_mean_text,
)
from ds_distill.study.jobs import TOKEN_SETTINGS
from ds_distill.study.paper import PAPER_ABLATION
from ds_distill.study.scheduler import make_folder_name
from ds_distill.training.state import read_heldout_curves

CORPUS_HELDOUT = "the corpus's held-out documents"
# These settings decide which tokens are held out, and which of them are masked.
HELDOUT_SETTINGS = (
    *TOKEN_SETTINGS,
    "data.mlm_probability",
    "data.mlm_smoothing",
    "data.whole_word_masking",
    "data.attend_across_documents",
    "training.seed",
    "training.eval_max_sequences",
)


def get_differing_settings(students: dict[str, dict]) -> set[str]:
    """Return the settings that are not the same for all students of a plan."""
    first, *others = students.values()
    return {key for changes in others for key in first | changes if changes.get(key) != first.get(key)}


def is_ablation(students: dict[str, dict]) -> bool:
    """Return whether each further student of a plan is the first one without something.

    That something is a loss, or the start from the teacher's layers.
    """
    first, *others = students.values()

    def is_removed(key: str, value) -> bool:
        return value == 0 if key.startswith("losses.") else key == "student.init_layers" and value == "random"

    return all(
        changes.get(key) == first.get(key) or is_removed(key, changes.get(key))
        for key in get_differing_settings(students)
        for changes in others
    )


def ablation_table(rows: list[dict], tasks: list[str], plan: dict[str, dict]) -> Section | None:
    """Return table 4: how each student's mean differs from the first one's.

    The table also has the range of that difference over seeds.

    Args:
        rows: One row per model, from `collect_rows`.
        tasks: The tasks that the mean is over.
        plan: The settings of each student.
    """
    students = get_students(rows)
    if len(students) < 3:
        return None
    first, lines, kind = students[0], [], heldout_kind(students)
    for row in students:
        mean, first_mean = mean_score(row, tasks), mean_score(first, tasks)
        line = {
            "student": row["model"],
            "loss": format_loss(row, f"heldout_{kind}_loss")
            if "heldout_mlm_loss" in row
            else None  # of a bare encoder
            if "tokens" in row
            else NOT_RUN,
        }
        line["mean"] = missing_mean_text(row, tasks) if mean is None else f"{mean:.1f}"
        if row is not first:
            line["difference"] = missing_mean_text(row if mean is None else first, tasks)
            if mean is not None and first_mean is not None:
                line["difference"] = f"{mean - first_mean:+.2f}"
                pairs = zip(means_by_seed(row, tasks), means_by_seed(first, tasks), strict=False)
                gaps = [a - b for a, b in pairs if a is not None and b is not None]
                line["spread"] = f"{min(gaps):+.2f} to {max(gaps):+.2f}" if len(gaps) > 1 else "one seed"
                if len({len(row["tasks"][task]["seeds"]) for task in tasks}) > 1:
                    line["spread"] += f", from the first {len(gaps)} of each task" if len(gaps) > 1 else " per task"
            line["paper"] = f"{PAPER_ABLATION[row['model']]:+.2f}" if row["model"] in PAPER_ABLATION else "–"
        lines.append(line)
    columns = {
        "student": "student",
        "loss": f"held-out loss {POSITIONS[kind]} (nats)",
        "mean": f"mean of {', '.join(tasks)}",
        "difference": f"difference from {first['model']}",
        "spread": "range over seeds",
    }
    if any(row["model"] in PAPER_ABLATION for row in students):
        columns["paper"] = "the paper's difference of the GLUE mean"
    if is_ablation(plan):
        return Section(
            "Ablation",
            "All students have the same size, tokens, batches and masks; each lacks one component.",
            lines,
            columns,
            (0,),
        )
    return Section(
        "Comparison of students",
        f"They differ in {', '.join(sorted(get_differing_settings(plan)))}.",
        lines,
        columns,
        (0,),
    )


def pretraining_section(study: Path, rows: list[dict], picture: Path, plan: dict[str, dict]) -> Section | None:
    """Return the section on the students' pretraining: held-out losses at its end and over tokens.

    Args:
        study: The study's folder.
        rows: One row per model, from `collect_rows`.
        picture: The file that the plot is written to.
        plan: The settings of each student.
    """
    curves, lines, first = {}, [], None
    students = get_students(rows)
    kind = heldout_kind(students)
    for row in students:
        file = study / "students" / make_folder_name(row["model"]) / "curves.json"
        if file.is_file() and "tokens" in row:  # The summary is written last.
            if guesses := "heldout_mlm_loss" in row:  # not those of a bare encoder
                heldout = read_heldout_curves(file.parent)
                curves[row["model"]] = {key or CORPUS_HELDOUT: points for key, points in heldout.items()}
            rate = row.get("tokens_per_second")  # A run that resumed after its last step has no rate.
            seconds = row["tokens"] / rate if rate else None
            first = first or seconds
            losses = {CORPUS_HELDOUT: format_loss(row, f"heldout_{kind}_loss")} if guesses else {}
            if guesses:
                sets = row.get("heldout_sets", {})
                losses |= {name: format_loss(figures, f"{kind}_loss") for name, figures in sets.items()}
            lines.append(
                {
                    "model": row["model"],
                    "tokens": f"{row['tokens']:,}",
                    "time": f"{seconds / first:.2f}" if seconds else "–",
                }
                | losses
            )
        else:
            lines.append({"model": row["model"], "tokens": NOT_RUN, "time": NOT_RUN})
    if not curves:
        return None
    panels = comparison_plot(curves, picture)
    texts = list(dict.fromkeys(key for line in lines for key in line if key not in ("model", "tokens", "time")))
    lines = [dict.fromkeys(texts, NOT_RUN) | line for line in lines]
    columns = {"model": "student", "tokens": "training tokens", "time": "time (first = 1)"} | {
        text: f"loss, {text}" for text in texts
    }
    text = (
        f"Held-out masked-LM loss {POSITIONS[kind]} at the end, in nats per position, ± its standard error over "
        "sequences where it was measured. Times include the effect of other steps that ran in parallel."
    )
    if differing := sorted(key for key in get_differing_settings(plan) if key in HELDOUT_SETTINGS):
        text += (
            " The held-out texts or masks are not the same, because the students differ in "
            f"{', '.join(differing)}; their "
            "losses must not be compared."
        )
    return Section(
        "Pretraining",
        text,
        lines,
        columns,
        pictures={"Held-out masked-LM loss over training tokens, one panel per text.": picture},
        panels=panels,
    )
