"""The report on runs: one HTML page on distillations, pretrainings and fine-tunings, with the answer first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_distill.reporting.heldout import POSITIONS, describe_terms, has_guesses
from ds_distill.reporting.pages import Card, Section, write_html
from ds_distill.reporting.panels import MOST_POINTS, Line, Panel, limits_after_start
from ds_distill.reporting.run_cards import NBSP, make_cards, percent
from ds_distill.reporting.run_details import make_detail_sections, make_footer
from ds_distill.reporting.run_panels import heldout_panels, labels_of_stages, training_panels
from ds_distill.reporting.run_rows import (
    Row,
    TeacherFigures,
    divide_figures,
    divide_scores,
    find_baseline,
    find_teachers,
    heldout_kind,
    make_rows,
    score_error,
)
from ds_distill.reporting.runs import Run, label_runs, read_run

POINTS = f"Each curve has at most {MOST_POINTS} points, which are means over equally many steps."


@dataclass(frozen=True)
class Extras:
    """What a report shows beside what its runs have left.

    Attributes:
        title: The page's title.
        lead: Its first paragraphs, with `code` in backticks and an empty line between paragraphs.
        rows: Figures of models that were measured side by side, in the order to show: {model, parameters, latency_ms,
            kept, each held-out figure}. The model that a run has trained has the run's label, and a teacher without a
            run in the report is "teacher". Other models have rows of their own.
        latency_of: What `latency_ms` is of, such as "one forward of 1 × 128 tokens in fp32 on the CPU".
        prompts: Texts with a masked word and what models answer: {"prompt": text, model: [(token, probability), …]}.
        commands: What can be done next: (remark, command).
    """

    title: str = ""
    lead: str = ""
    rows: Sequence[Row] = ()
    latency_of: str = ""
    prompts: Sequence[Row] = ()
    commands: Sequence[tuple[str, str]] = ()


NO_EXTRAS = Extras()


@dataclass(frozen=True)
class RunPage:
    """The parts of a report's page."""

    cards: list[Card]
    sections: list[Section]
    footer: str


def write_report(
    runs: Mapping[str, str | Path] | Sequence[str | Path],
    output: str | Path,
    *,
    teachers: Sequence[str | Path] = (),
    extras: Extras = NO_EXTRAS,
) -> dict[str, Any]:
    """Write output/report.html on finished runs; return {"report": its path, "sections": the headings}.

    The page is a single file without scripts, which loads nothing. The same runs and extras give the same bytes.

    Args:
        runs: Folders of distill, pretrain and finetune: by the label that the page shows for each, or as a list, whose
            labels are the folders' names. Cards are on the first distillation.
        output: The folder to write the page into.
        teachers: Folders of teachers' own runs, whose figures are the level that students are compared with. Those that
            are not in `runs` are added. Without them a distillation is compared with what it has measured of its
            teacher, and a fine-tuning with the fine-tuning among `runs` that was its --teacher.
        extras: What else to show.

    Raises:
        UserError: A folder holds no finished run.
    """
    labeled = runs if isinstance(runs, Mapping) else label_runs([Path(folder) for folder in runs])
    page = make_page(
        {label: Path(folder) for label, folder in labeled.items()}, [Path(folder) for folder in teachers], extras
    )
    file = Path(output) / "report.html"
    title = extras.title or f"Report on {' and '.join(labeled) if len(labeled) < 3 else f'{len(labeled)} runs'}"
    write_html(file, title, extras.lead, page.sections, cards=page.cards, footer=page.footer)
    return {"report": str(file), "sections": [section.heading for section in page.sections]}


def make_page(runs: Mapping[str, Path], teachers: Sequence[Path], extras: Extras = NO_EXTRAS) -> RunPage:
    """Return the parts of a report on runs; arguments and errors are those of `write_report`."""
    known = {folder.resolve() for folder in runs.values()}
    added = label_runs([folder for folder in teachers if folder.resolve() not in known])
    added = {label if label not in runs else f"{label} (teacher)": folder for label, folder in added.items()}
    shown = [read_run(folder, label) for label, folder in (added | dict(runs)).items()]
    places = {folder.resolve() for folder in teachers}
    named = [run for run in shown if run.path.resolve() in places]
    found = find_teachers(shown, named, extras.rows)
    trained, tuned = [run for run in shown if not run.is_finetuning], [run for run in shown if run.is_finetuning]
    of_trained = {run.label: found[run.label] for run in trained if run.label in found}
    rows = make_rows(trained, of_trained, extras.rows)
    kind = heldout_kind(rows)
    sections: list[Section] = []
    if rows:
        sections.append(_trained_table(trained, rows, of_trained, kind, extras.latency_of))
    if tuned:
        sections.append(_tuned_table(tuned, found))
    sections += [*_prompt_sections(extras.prompts), *_figure_sections(trained, tuned, of_trained)]
    if extras.commands:
        sections.append(Section("What to do next", commands=dict(extras.commands)))
    sections += make_detail_sections(shown)
    cards = make_cards(shown, rows, found, kind, extras.latency_of)
    return RunPage(cards, sections, make_footer({run.label: run.record for run in shown}))


def _trained_table(
    runs: Sequence[Run], rows: Sequence[Row], teachers: Mapping[str, TeacherFigures], kind: str, latency_of: str
) -> Section:
    lines = []
    reference = dict(teachers)
    for run in runs:
        if run.label in teachers and (baseline := find_baseline(run, runs)):
            reference.setdefault(baseline.label, teachers[run.label])
    for row in rows:
        name, peak = row["model"], row.get("peak_memory_gib")
        loss, error = row.get(f"{kind}_loss"), row.get(f"{kind}_loss_se")
        lines.append(
            {
                "model": name,
                "what": row.get("what"),
                "parameters": row.get("parameters"),
                "latency": None if row.get("latency_ms") is None else f"{row['latency_ms']:.2f}",
                "loss": None if loss is None else f"{loss:.3f}" + ("" if error is None else f" ± {error:.3f}"),
                "accuracy": percent(row.get(f"{kind}_accuracy"), row.get(f"{kind}_accuracy_se")),
                "terms": describe_terms(row) or None,
                "kept": _kept(row, reference.get(name), kind),
                "tokens": row.get("tokens"),
                "rate": None if row.get("tokens_per_second") is None else round(row["tokens_per_second"]),
                "memory": None if peak is None else f"{peak:.1f}",
                "skipped": row.get("skipped_steps"),
            }
        )
    columns = {
        "model": "model",
        "what": "what it is",
        "accuracy": "held-out accuracy",
        "kept": "teacher's accuracy kept",
        "loss": "held-out loss (nats)",
        "terms": "held-out terms",
        "parameters": "parameters",
        "latency": "latency (ms)",
        "tokens": "training tokens",
        "rate": "tokens per second in training",
        "memory": "peak memory (GiB)",
        "skipped": "skipped steps",
    }
    if any("latency_ms" in row for row in rows):
        del columns["what"]  # those who measured the models have named them
    if not any(has_guesses(row) for row in rows):
        del columns["accuracy"], columns["loss"]
    always = ("model", "parameters", "loss", "accuracy")
    columns = {key: name for key, name in columns.items() if key in always or any(line[key] for line in lines)}
    text = _explain_figures(runs, rows, teachers, kind)
    text += f" Latency is that of {latency_of}." * bool(latency_of and "latency" in columns)
    distilled = {run.label for run in runs if run.has_teacher}
    marked = tuple(i for i, row in enumerate(rows) if row["model"] in distilled)
    return Section("Results", text, lines, columns, marked)


def _kept(row: Row, teacher: TeacherFigures | None, kind: str) -> str | None:
    """Return a row's share of the teacher's accuracy, as it was measured or from the two accuracies."""
    share = divide_figures(row, teacher.row, f"{kind}_accuracy") if teacher else None
    if share:
        return percent(share.value, share.error)
    return None if row.get("kept") is None else percent(row["kept"])


def _explain_figures(
    runs: Sequence[Run], rows: Sequence[Row], teachers: Mapping[str, TeacherFigures], kind: str
) -> str:
    """Return what the held-out figures are over, and which of them must not be compared."""
    if not any(has_guesses(row) for row in rows):
        text = "Held-out figures are means over real tokens of the terms of the loss."
    elif kind == "mask":
        text = f"Held-out figures are those {POSITIONS[kind]}."
        counts = {row[f"{kind}_count"] for row in rows if row.get(f"{kind}_count")}
        text = text[:-1] + f", {counts.pop():,} of them." if len(counts) == 1 else text
    else:
        text = (
            f"Held-out figures are those {POSITIONS[kind]}, some of which show the model the right token, because not "
            f"all runs have figures {POSITIONS['mask']} alone."
        )
    if any(row.get(f"{kind}_accuracy_se") is not None for row in rows):
        text += " ± is one standard error over sequences."
    if any(not teacher.compares for teacher in teachers.values()):
        text += " A teacher's run had other held-out tokens or masks, so no share of its accuracy is given."
    elif any(not run.compares_with(runs[0]) for run in runs[1:]):
        text += " The runs do not have the same held-out tokens and masks, so their figures must not be compared."
    return text


def _tuned_table(runs: Sequence[Run], teachers: Mapping[str, TeacherFigures]) -> Section:
    rows = []
    for run in runs:
        summary, metric = run.summary, run.summary["metric"]
        share = divide_scores(run, teachers[run.label].row) if run.label in teachers else None
        values = [seed[metric] for seed in summary["seeds"]]
        scores = [value for value in values if value is not None]
        spread = f"{100 * min(scores):.1f} to {100 * max(scores):.1f}" if len(scores) > 1 else None
        rows.append(
            {
                "run": run.label,
                "task": summary["task"],
                "metric": metric.replace("_", " "),
                "median": percent(summary["metrics"][metric], score_error(summary)),
                "spread": spread,
                "seeds": f"{len(scores)} of {len(values)}" if len(scores) < len(values) else len(values),
                "kept": percent(share.value, share.error) if share else None,
                "parameters": summary.get("parameters"),
                "teacher": ", ".join(teacher) if isinstance(teacher := summary.get("teacher"), list) else teacher,
            }
        )
    columns = {
        "run": "run",
        "task": "task",
        "metric": "metric",
        "median": "median over seeds",
        "spread": "lowest to highest (%)",
        "seeds": "seeds",
        "kept": "share of the teacher's score",
        "parameters": "parameters",
        "teacher": "distilled from",
    }
    optional = ("spread", "kept", "teacher")
    columns = {key: name for key, name in columns.items() if key not in optional or any(row[key] for row in rows)}
    text = "Scores on the dev sets."
    if any(len(run.summary["seeds"]) > 1 for run in runs):
        text += " ± is one standard error of the mean over seeds."
    return Section("Scores on tasks", text, rows, columns)


def _prompt_sections(prompts: Sequence[Row]) -> list[Section]:
    if not prompts:
        return []
    rows = [
        {
            name: answers if name == "prompt" else ", ".join(f"{token} {100 * p:.0f}{NBSP}%" for token, p in answers)
            for name, answers in prompt.items()
        }
        for prompt in prompts
    ]
    columns = {
        name: "text" if name == "prompt" else name for name in dict.fromkeys(name for row in rows for name in row)
    }
    return [Section("Answers", "What each model puts in place of [MASK], with its probability.", rows, columns)]


def _figure_sections(
    trained: Sequence[Run], tuned: Sequence[Run], teachers: Mapping[str, TeacherFigures]
) -> list[Section]:
    sections = []
    trained = [run for run in trained if run.curves.history]
    if trained:
        levels = [teacher.heldout for teacher in teachers.values() if teacher.compares]
        stages = {run.label: run.curves.stages for run in trained}
        curves = {run.label: run.curves.heldout for run in trained}
        objectives = {run.label: (run.identity.get("teacher"), str(run.objectives)) for run in trained}
        heldout = heldout_panels(curves, levels[0] if levels else {}, stages=stages, objectives=objectives)
        bars = any(error is not None for panel in heldout for line in panel.lines for error in line.errors)
        text = "A curve that begins far from the others enters from the edge. " * any(map(limits_after_start, heldout))
        text += "Bars are one standard error." * bars
        sections.append(Section("Held-out loss and accuracy", text, panels=heldout))
        terms = {
            run.label: (
                run.curves.history,
                labels_of_stages(run.objectives, run.record.get("layer_map"), run.clean_fraction),
            )
            for run in trained
        }
        text = f"{POINTS} Terms that differ in layers or settings have panels of their own."
        sections.append(Section("Training losses", text, panels=training_panels(terms, stages)))
    panels = [panel for run in tuned if (panel := _tuning_panel(run))]
    if panels:
        sections.append(Section("Losses of fine-tuning", panels=panels))
    return sections


def _tuning_panel(run: Run) -> Panel | None:
    """Return the training losses of a fine-tuning's seeds at its best settings, where their files are there."""
    lines: list[Line] = []
    for file in sorted(run.path.glob("*seed=*/result.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        same = {**result["settings"], "max_length": None} == {**run.summary["settings"], "max_length": None}
        if same and result.get("losses"):
            steps, losses = zip(*result["losses"], strict=True)
            lines.append(Line(f"seed {result['seed']}", steps, losses, (), len(lines), measured=False))
    return Panel(f"{run.label}: training loss", "loss (nats)", lines, across="steps") if lines else None
