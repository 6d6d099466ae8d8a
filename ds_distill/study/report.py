"""The report of studies, laid out like tables 1 to 4 of the paper (Sanh et al. 2019).

The paper's own figures stand in rows of their own and are marked as such.
"""

from __future__ import annotations

import json
from pathlib import Path

from ds_distill.reporting.pages import Section, write_page
from ds_distill.reporting.tables import table
from ds_distill.study.benchmark_sections import make_benchmark_section
from ds_distill.study.plan import Study, collect_rows
from ds_distill.study.score_tables import data_set_table, other_metrics_table, retention_table, task_tables
from ds_distill.study.student_tables import ablation_table, pretraining_section
from ds_distill.utils.errors import UserError


def write_report(folders: list[str], output: Path) -> dict:
    """Write output/report.html and output/report.md on the studies and benchmark reports in `folders`.

    Raises:
        UserError: If there is nothing to report.
    """
    sections: list[Section] = []
    for number, folder in enumerate(map(Path, folders)):
        before = len(sections)
        if (folder / "study.json").is_file():
            output.mkdir(parents=True, exist_ok=True)
            sections += make_study_sections(folder, output / f"curves_{number}.png")
        for name in ("table3.json", "inference.json"):
            if (folder / name).is_file():
                sections.append(make_benchmark_section(json.loads((folder / name).read_text(encoding="utf-8")), name))
        if len(sections) == before and (folder / "study.json").is_file():
            raise UserError(
                f"{folder}: the study has no tasks, and none of its students is finished yet; resume the study with "
                "its own command"
            )
        if len(sections) == before:
            raise UserError(
                f"{folder}: contains neither a study (study.json) nor a benchmark's report (table3.json, "
                "inference.json); give the --output folder of one"
            )
        if len(folders) > 1:
            for section in sections[before:]:
                section.heading += f" ({folder})"
    write_page(
        output,
        "report",
        "What the student retains",
        f"Generated from {', '.join(f'`{folder}`' for folder in folders)}.",
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


def make_study_sections(folder: Path, picture: Path) -> list[Section]:
    """Return the sections on what a study has run so far."""
    plan = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    rows = collect_rows(Study.from_dict(plan), folder)
    sections = [section for section in (retention_table(rows, plan["tasks"]),) if section] + task_tables(
        rows, plan["tasks"]
    )
    if others := other_metrics_table(rows, plan["tasks"]):
        sections.append(others)
    if ablation := ablation_table(rows, plan["tasks"], plan["students"]):
        sections.append(ablation)
    if section := pretraining_section(folder, rows, picture, plan["students"]):
        sections.append(section)
    if sizes := data_set_table(rows):
        sections.append(sizes)
    return sections
