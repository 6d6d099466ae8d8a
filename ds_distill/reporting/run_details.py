"""The details of a report on runs: settings and text, and the command and environment of each run in the footer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ds_distill.reporting.pages import Section
from ds_distill.reporting.runs import Run

FINGERPRINT = re.compile(r"[0-9a-f]{32,}")
NO_RECORD = "not recorded"  # by a run of an earlier version


def make_detail_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the sections on the settings and the text of runs."""
    return [section for section in (_settings_section(runs), _text_section(runs)) if section]


def make_footer(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the command, date, versions and hardware of runs as paragraphs; what several share is said once.

    The time of the report itself is left out, so that the same runs give the same bytes.

    Args:
        records: Maps the label of a run to the content of its record.json, which is empty where there is none.
    """
    parts: list[str] = []
    places: dict[str, list[str]] = {}
    for label, record in records.items():
        if record:
            parts.append(
                f"{label}: `{record.get('command', NO_RECORD)}`, finished {record.get('finished', NO_RECORD)}."
            )
            precision = f"; trained in {record['precision']}" if "precision" in record else ""
            place = f"{_versions(record)}; {_hardware(record.get('hardware', {}))}{precision}."
            places.setdefault(place, []).append(label)
    if missing := [label for label, record in records.items() if not record]:
        parts.append(f"No record of command, date, versions and hardware: {', '.join(missing)}.")
    parts += [place if len(places) == 1 else f"{', '.join(labels)}: {place}" for place, labels in places.items()]
    return "\n\n".join(parts)


def _versions(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())


def _hardware(hardware: Mapping[str, Any]) -> str:
    gpus = hardware.get("gpus") or []
    kinds = [f"{gpus.count(name)} × {name}" for name in dict.fromkeys(gpus)]
    ranks = hardware.get("ranks") or 1
    parts = [*kinds, f"{hardware.get('cpu', '')}, {hardware.get('cpu_cores', '–')} cores"]
    parts += [f"{hardware['memory_gib']} GiB of memory"] if "memory_gib" in hardware else []
    return ", ".join(parts + ([f"{ranks} ranks"] if ranks > 1 else []))


def _settings_section(runs: Sequence[Run]) -> Section | None:
    settings = {
        run.label: (run.identity | {f"finetune.{key}": value for key, value in run.summary["settings"].items()})
        if run.is_finetuning
        else run.identity
        for run in runs
    }
    keys = list(dict.fromkeys(key for values in settings.values() for key in values))
    if not keys:
        return None
    rows = [
        {"setting": f"`{key}`"} | {label: _text(values[key]) for label, values in settings.items() if key in values}
        for key in keys
    ]
    differing = tuple(
        i for i, row in enumerate(rows) if len({value for key, value in row.items() if key != "setting"}) > 1
    )
    text = (
        "Every setting that decides the result of a run, and the beginnings of the fingerprints of its data and "
        "of its teacher's weights."
    )
    if len(runs) > 1:
        text += " The rows that stand out are those in which the runs differ."
    columns = {"setting": "setting"} | {run.label: run.label for run in runs}
    return Section("Recipe", text, rows, columns, differing if len(runs) > 1 else ())


def _text_section(runs: Sequence[Run]) -> Section | None:
    texts = {run.label: _text_figures(run) for run in runs}
    keys = list(dict.fromkeys(key for figures in texts.values() for key in figures))
    if not keys:
        return None
    rows = [{"what": key} | {label: figures.get(key) for label, figures in texts.items()} for key in keys]
    return Section(
        "Text",
        "What each run read, and what of it was left out.",
        rows,
        {"what": "figure"} | {run.label: run.label for run in runs},
    )


def _text_figures(run: Run) -> dict[str, int]:
    summary = run.summary
    if run.is_finetuning:
        keys = {"examples": "examples", "truncated": "truncated", "unknown": "unknown tokens"}
        figures = {f"{what}, {split}": n for key, what in keys.items() for split, n in summary.get(key, {}).items()}
        for split, causes in summary.get("left_out", {}).items():
            figures |= {f"left out, {split}: {cause}": count for cause, count in causes.items()}
        return figures
    characters = {f"characters, {key.replace('_', ' ')}": n for key, n in summary.get("characters", {}).items()}
    kept = ("characters, read", "characters, tokenized")
    figures = {key: count for key, count in characters.items() if count or key in kept}
    known = {
        "training tokens seen": summary.get("tokens"),
        "held-out [MASK] positions": summary.get("heldout_mask_count"),
    }
    return {key: count for key, count in known.items() if count is not None} | figures


def _text(value: object) -> str:
    if isinstance(value, str) and FINGERPRINT.fullmatch(value):
        return value[:12]  # enough to see whether two are the same
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
