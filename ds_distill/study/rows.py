"""The rows of a study's summary and report: one for each model, with its held-out figures and task scores."""

from __future__ import annotations

from pathlib import Path

from ds_distill.study.plan import Study
from ds_distill.study.scheduler import make_folder_name
from ds_distill.utils.files import read_summary


def collect_rows(study: Study, output: Path) -> list[dict]:
    """Return one row per model, with its held-out figures and its task scores.

    The held-out figures are those of the pretraining, and each score comes with its seeds. What has
    not been run is not in the row.
    """
    rows: list[dict] = []
    for name, variant in study.finetunings.items():
        row: dict = {"model": name, "tasks": {}} | ({"student": variant.student} if name != variant.student else {})
        if pretrained := read_summary(output / "students" / make_folder_name(name)):
            keys = ("tokens", "tokens_per_second", "parameters")
            row |= {key: value for key, value in pretrained.items() if "heldout" in key or key in keys}
        for task in study.labels:
            if summary := read_summary(output / "tasks" / task / make_folder_name(name)):
                row["tasks"][task] = {
                    key: summary[key]
                    for key in ("metric", "metrics", "seeds", "constant", "examples", "truncated", "left_out")
                    if key in summary
                }
                if "parameters" in summary:
                    row.setdefault("parameters", summary["parameters"])
        rows.append(row)
    return rows
