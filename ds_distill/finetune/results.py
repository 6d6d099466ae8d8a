"""The folders of the runs of a plan, and the summary of what they have scored."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.metrics import median, rank
from ds_distill.utils.console import log
from ds_distill.utils.files import StoredSummary, read_summary


def run_folder(output: Path, point: FinetuneConfig, points: list[FinetuneConfig], seed: int) -> Path:
    """Return the folder of a run, whose name has the seed and the settings that differ among the points."""
    differing = [f"{name}={value}" for name, value in differing_settings(point, points).items()]
    return output / ",".join([*differing, f"seed={seed}"])


def differing_settings(point: FinetuneConfig, points: list[FinetuneConfig]) -> dict:
    """Return the settings of a point that are not the same at all points."""
    others = [other.as_dict() for other in points]
    return {name: value for name, value in point.as_dict().items() if any(other[name] != value for other in others)}


def finished_before(output: Path, points: list[FinetuneConfig], seeds: list[int]) -> StoredSummary | None:
    """Return the summary of a plan of which every run is finished, and say so; else None."""
    summary = read_summary(output)
    if summary is None:
        return None
    try:
        # A summary has the length that was used; what was asked for is beside each run.
        if len({point.max_length for point in points}) > 1 or [row["seed"] for row in summary["seeds"]] != seeds:
            return None
        stored = [entry["settings"] | {"max_length": points[0].max_length} for entry in summary["grid"] or [summary]]
        if stored != [point.as_dict() for point in points]:
            return None
        for point in points:
            for seed in seeds:
                folder = run_folder(output, point, points, seed)
                asked = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["asked"]
                if asked != point.as_dict() or not (folder / "result.json").is_file():
                    return None
        export = output / os.path.relpath(summary["export"], summary["output"])  # the folder may have been moved since
    except (OSError, ValueError, KeyError, TypeError):
        return None
    count = len(points) * len(seeds)
    log(f"{output}: finished before ({count} of {count} runs), nothing to do")
    return StoredSummary(summary | {"export": str(export), "output": str(output)})


def make_summary(
    task: Task, results: list[dict], output: Path, model: str, teachers: Sequence[str]
) -> tuple[dict, FinetuneConfig]:
    """Return (summary, the best point of the grid) by the median of the task's first metric.

    In the summary, a setting's max_length is the one that was used.
    """
    metric = task.metrics[0]
    results = [result | {"settings": FinetuneConfig.complete(result["settings"])} for result in results]
    by_point: dict[str, list[dict]] = {}
    for result in results:
        by_point.setdefault(json.dumps(result["settings"], sort_keys=True), []).append(result)
    best = max(by_point.values(), key=lambda runs: rank(median(run["metrics"][metric] for run in runs)))
    dev = {name: median(run["metrics"][name] for run in best) for name in best[0]["metrics"]}
    measured = [run for run in best if run["metrics"][metric] is not None]
    middle = (
        best[0] if dev[metric] is None else min(measured, key=lambda run: abs(run["metrics"][metric] - dev[metric]))
    )
    points = [
        {
            "settings": runs[0]["settings"] | {"max_length": runs[0]["length"]},
            metric: median(run["metrics"][metric] for run in runs),
        }
        for runs in by_point.values()
    ]
    summary = {
        "task": task.name,
        "metric": metric,
        metric: dev[metric],
        "metrics": dev,
        # not `precision`, which is a metric of tags
        "seeds": [{"seed": run["seed"], **run["metrics"], "number_format": run["precision"]} for run in best],
        "settings": best[0]["settings"] | {"max_length": best[0]["length"]},
        "grid": points if len(points) > 1 else [],
        "model": model,
        "teacher": teachers[0] if len(teachers) == 1 else list(teachers) or None,
        "export": middle["folder"],
        "output": str(output),
    }
    return summary, FinetuneConfig(**best[0]["settings"])
