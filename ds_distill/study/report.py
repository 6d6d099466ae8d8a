"""The report on runs, studies and benchmarks; studies are laid out like tables 1 to 4 of the paper (Sanh et al. 2019).

The paper's own figures stand in rows of their own and are marked as such.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ds_distill.reporting.pages import Section, write_page
from ds_distill.reporting.run_details import make_footer
from ds_distill.reporting.run_report import make_page
from ds_distill.reporting.run_report import write_report as write_run_report
from ds_distill.reporting.runs import is_run, label_runs, read_record
from ds_distill.reporting.tables import table
from ds_distill.run_folder import RunFolder
from ds_distill.study.benchmark_sections import make_benchmark_section
from ds_distill.study.comparisons import comparison_sections
from ds_distill.study.outputs import load_outputs
from ds_distill.study.pareto_points import FILE as PARETO
from ds_distill.study.pareto_sections import make_pareto_sections
from ds_distill.study.plan import Study
from ds_distill.study.rows import collect_rows
from ds_distill.study.score_tables import data_set_table, other_metrics_table, retention_table, task_tables
from ds_distill.study.student_tables import ablation_table, pretraining_section
from ds_distill.utils.errors import UserError

BENCHMARKS = ("table3.json", "inference.json")
OTHERS = ("study.json", PARETO, *BENCHMARKS)


def write_report(folders: Sequence[str | Path], output: Path, teachers: Sequence[str | Path] = ()) -> dict:
    """Write output/report.html on the runs, studies and benchmark reports in `folders`.

    A report with a study or a benchmark is also written as output/report.md.

    Args:
        folders: The folders.
        output: The folder to write into.
        teachers: Runs of teachers, as for `run_report.write_report`.

    Raises:
        UserError: If there is nothing to report.
    """
    paths = [Path(folder) for folder in folders]
    others = [folder for folder in paths if any((folder / name).is_file() for name in OTHERS)]
    runs = [
        folder for folder in paths if folder not in others and (is_run(folder) or RunFolder(folder).identity.is_file())
    ]
    for folder in paths:
        if folder not in others and folder not in runs:
            raise UserError(
                f"{folder}: contains neither a study (study.json) nor a run (summary.json) nor a benchmark's report "
                f"({', '.join(OTHERS[1:])}); give the --output folder of one"
            )
    if not others:
        return write_run_report(runs, output, teachers=teachers)
    page = make_page(label_runs(runs), [Path(folder) for folder in teachers])
    sections = page.sections
    measured = [folder for folder in others if (folder / PARETO).is_file()]
    for number, folder in enumerate(others):
        if not any((folder / name).is_file() for name in ("study.json", *BENCHMARKS)):
            continue
        added = _make_sections(folder, output / f"curves_{number}.png")
        if len(paths) - len(measured) > 1:
            for section in added:
                section.heading += f" ({folder})"
        sections += added
    studies = [folder for folder in others if (folder / "study.json").is_file()]
    for folder in measured:
        output.mkdir(parents=True, exist_ok=True)
        added = make_pareto_sections(folder, studies, output)
        if len(measured) > 1:
            for section in added:
                section.heading += f" ({folder})"
        sections += added
    records = {str(folder): read_record(folder) for folder in others}
    records |= {f"{folder}, {run.name}": read_record(run) for folder in others for run in _students(folder)}
    footer = make_footer({label: record for label, record in records.items() if record})
    write_page(
        output,
        "report",
        "What the student retains",
        f"Generated from {', '.join(f'`{folder}`' for folder in folders)}.",
        sections,
        cards=page.cards,
        footer="\n\n".join(filter(None, (page.footer, footer))),
    )
    for section in sections:
        if section.rows:
            print(f"\n{section.heading}\n\n{table(section.rows, section.columns)}")
    return {
        "report": str(output / "report.html"),
        "markdown": str(output / "report.md"),
        "sections": [section.heading for section in sections],
    }


def _make_sections(folder: Path, picture: Path) -> list[Section]:
    """Return the sections on the study and the benchmark reports in a folder."""
    sections: list[Section] = []
    if (folder / "study.json").is_file():
        picture.parent.mkdir(parents=True, exist_ok=True)
        sections += make_study_sections(folder, picture)
    for name in BENCHMARKS:
        if (folder / name).is_file():
            sections.append(make_benchmark_section(json.loads((folder / name).read_text(encoding="utf-8")), name))
    if not sections:
        raise UserError(
            f"{folder}: the study has no tasks, and none of its students is finished yet; resume the study with "
            "its own command"
        )
    return sections


def _students(study: Path) -> list[Path]:
    return sorted(folder for folder in (study / "students").glob("*") if RunFolder(folder).record.is_file())


def make_study_sections(folder: Path, picture: Path) -> list[Section]:
    """Return the sections on what a study has run so far."""
    plan = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    study = Study.from_dict(plan)
    rows, tasks = collect_rows(study, folder), study.labels
    outputs = load_outputs(study, folder, rows)
    for row in rows:
        for task, result in row["tasks"].items():
            if "constant" not in result and row["model"] in outputs[task].runs:  # as an earlier version wrote it
                result["constant"] = outputs[task].runs[row["model"]][0].score_constant()
    sections = [section for section in (retention_table(rows, tasks),) if section] + task_tables(rows, tasks)
    sections += comparison_sections(rows, tasks, outputs)
    if others := other_metrics_table(rows, tasks):
        sections.append(others)
    if ablation := ablation_table(rows, tasks, plan["students"]):
        sections.append(ablation)
    if section := pretraining_section(folder, rows, picture, plan["students"]):
        sections.append(section)
    if sizes := data_set_table(rows):
        sections.append(sizes)
    return sections
