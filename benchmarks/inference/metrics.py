"""Turn the inference suite's latencies into its figures: quantiles, rates, ratios, sizes and a summary."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.interleave import ratio
from benchmarks.inference.backends import BACKENDS, Backend, Row
from ds_distill.exporters.model import ExportModel
from ds_distill.exporters.parity import agreement_shares

BASE, STUDENT, TEACHER = "BERT-base", "student", "teacher"
MIX = "mix"  # the lengths of real sequences


@dataclass
class Measured:
    """The measurements of one row: the latencies of each round by case, and what its process reported."""

    row: Row
    latencies: dict[str, list[list[float]]] = field(default_factory=dict)
    joules: dict[str, list[float | None]] = field(default_factory=dict)
    process_report: dict = field(default_factory=dict)
    ended: bool = False

    def median(self, case: str) -> float:
        """Return the median latency of a case over all rounds, in seconds."""
        return statistics.median(self.all(case))

    def all(self, case: str) -> list[float]:
        """Return the latencies of a case over all rounds, in seconds."""
        return [value for part in self.latencies[case] for value in part]

    def medians(self, case: str) -> list[float]:
        """Return the median latency of a case in each round, in seconds."""
        return [statistics.median(part) for part in self.latencies[case]]


def in_memory(model: torch.nn.Module, backend: Backend) -> int:
    """Return the bytes of the weights in a backend that has no file."""
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return backend.width * sum(p.numel() for p in model.parameters()) + linear * (
        0 if backend.linear is None else backend.linear - backend.width
    )


def count_bytes(source: ExportModel, files: Path, backend: Backend) -> int:
    """Return the bytes of a model's file in a backend, or of its weights in one that has no file.

    Args:
        source: The model.
        files: The folder to which `suite.prepare` wrote its files.
        backend: The backend.
    """
    if backend.file is None:
        return in_memory(source.model, backend)
    return sum(part.stat().st_size for part in files.glob(f"{Path(backend.file).stem}.*"))


def figures(
    measurements: list[Measured],
    cases: dict[str, list[list[int]]],
    sources: dict[str, tuple[ExportModel, Path]],
    choices: dict[str, tuple],
) -> list[dict]:
    """Return one dictionary per row and case, with the figures that the report and the JSON show."""
    by = {(one.row.model, one.row.backend): one for one in measurements}
    out = []
    for one in measurements:
        source, files = sources[one.row.model]
        parameters = sum(p.numel() for p in source.model.parameters())
        size = count_bytes(source, files, BACKENDS[one.row.backend])
        fixed = {
            "model": one.row.model,
            "body": one.row.backend,
            "head": one.row.head,
            "threads": one.row.threads,
            "parameters": parameters,
            "file_mb": size / 1e6,
            "load_s": one.process_report["load_seconds"],
            "peak_mb": one.process_report["peak_bytes"] / 1e6 if "peak_bytes" in one.process_report else None,
            "peak_case": one.process_report.get("peak_case"),
        }
        if "choices" in one.process_report:
            same = np.concatenate(one.process_report["choices"]) == choices[one.row.model][0]
            clear = choices[one.row.model][1]
            fixed |= agreement_shares(same, clear) | {"positions": len(same), "clear_share": float(clear.mean())}
        for case, batches in cases.items():
            if case not in one.latencies:
                continue
            values, median = one.all(case), one.median(case)
            sequences, tokens = statistics.mean(map(len, batches)), statistics.mean(map(sum, batches))
            seconds = statistics.mean(values) if case.endswith(MIX) else median
            spent = [used for used in one.joules[case] if used is not None]
            entry = fixed | {
                "case": case,
                "calls": len(values),
                "p50_ms": 1e3 * median,
                "p95_ms": 1e3 * float(np.quantile(values, 0.95)) if len(values) >= 20 else None,
                "p99_ms": 1e3 * float(np.quantile(values, 0.99)) if len(values) >= 100 else None,
                "sequences_s": sequences / seconds,
                "tokens_s": tokens / seconds,
                "joules_per_sequence": sum(spent) / (len(values) * sequences) if spent else None,
            }
            others = {
                "vs_base_eager": (BASE, "eager_fp32"),
                "vs_base_onnx": (BASE, "onnx_fp32"),
                "vs_base_same_body": (BASE, one.row.backend),
                "vs_teacher_same_body": (TEACHER, one.row.backend),
            }
            for key, other in ((key, by.get(who)) for key, who in others.items()):
                if other is not None and case in other.latencies:
                    reference_medians, row_medians = other.medians(case), one.medians(case)
                    rounds = min(len(reference_medians), len(row_medians))
                    entry |= {key: ratio(reference_medians[:rounds], row_medians[:rounds]), f"{key}_rounds": rounds}
            out.append(entry)
    return out


def summary(entries: list[dict]) -> dict:
    """Return the main figures of the student.

    They are for 1 and 32 sequences of 128 tokens, the encoder alone and all threads.
    """
    most = max(entry["threads"] for entry in entries)
    result: dict = {}
    student_entries = [entry for entry in entries if entry["model"] == STUDENT]
    for case in ("1 × 128", "32 × 128"):
        rows = [
            entry
            for entry in student_entries
            if entry["case"] == case and entry["head"] == "encoder" and entry["threads"] == most
        ]
        key = f"batch_{case.split()[0]}"
        if same := {row["body"]: round(row["vs_base_same_body"], 3) for row in rows if "vs_base_same_body" in row}:
            result[f"{key}_vs_base_same_body"] = same
        eight = [row for row in rows if BACKENDS[row["body"]].bits == 8]
        if eight:
            best = min(eight, key=lambda row: row["p50_ms"])
            result[f"{key}_best_int8"] = best["body"]
            result |= {
                f"{key}_best_int8_{name}": round(best[name], 3)
                for name in ("vs_base_eager", "vs_base_onnx")
                if name in best
            }
    for name in ("agreement", "clear_agreement"):
        if agreement_shares := {entry["body"]: round(entry[name], 4) for entry in student_entries if name in entry}:
            result[name] = agreement_shares
    base = next(
        (
            entry["file_mb"]
            for entry in entries
            if (entry["model"], entry["body"], entry["head"]) == (BASE, "onnx_fp32", "masked-lm")
        ),
        None,
    )
    if base:
        shares = {
            entry["body"]: round(entry["file_mb"] / base, 4)
            for entry in student_entries
            if entry["head"] == "masked-lm" and BACKENDS[entry["body"]].bits
        }
        result["file_share_of_base"] = shares
    return result
