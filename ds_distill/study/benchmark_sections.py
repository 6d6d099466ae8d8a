"""The section of a report on a benchmark's results."""

from __future__ import annotations

import json

from ds_distill.reporting.pages import Section


def make_benchmark_section(results: dict, name: str) -> Section:
    """Return the section on a benchmark's report, table3.json or inference.json."""
    if name == "table3.json":
        lines = [
            row | {key: f"{row[key]:.{digits}f}" for key, digits in (("parameters", 1), ("seconds", 1), ("share", 3))}
            for row in results["rows"]
        ]
        columns = {
            "model": "model",
            "body": "body",
            "parameters": "parameters (M)",
            "seconds": "time (s)",
            "share": "share of BERT-base's time",
            "memory": "smallest memory limit (MB)",
            "paper_parameters": "the paper's parameters (M)",
            "paper_seconds": "the paper's time (s)",
            "paper_share": "the paper's share",
        }
        columns = {key: name for key, name in columns.items() if any(key in line for line in lines)}
        about = (
            f"A full pass over {results['examples']:,} examples of {results['data']}, one at a time on one thread; "
            f"{results['machine']}."
        )
        return Section("Size and speed", about, lines, columns)
    lines = [
        {"figure": key.replace("_", " "), "value": json.dumps(value).replace('"', "")}
        for key, value in results["summary"].items()
    ]
    return Section("Inference", results["machine"], lines, {"figure": "figure", "value": "value"})
