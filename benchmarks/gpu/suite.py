"""Run all GPU measurements in one command, in under ten minutes, and write one report.

    python -m benchmarks.gpu.suite --report docs/results/benchmarks/h100
    python -m benchmarks.gpu.suite --rehearse --report /tmp/rehearsal
        runs small on a CPU to see whether the suite itself works; its figures do not count

Each part is another benchmark in a process of its own. The parts run in the order of importance. If
a part fails or no time is left for it, the report says so and the others continue. The suite needs
torch, transformers, triton and DeepSpeed; it needs neither datasets nor an argument parser beyond
Python's.

gpu_suite.md and gpu_suite.json are written to the report's folder, anew after each part. The
conclusion is printed at the end, and the very last line is JSON. The exit status is 1 if a part has
no result, if a limit does not hold, or, on a GPU, if a check has no result.
"""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.harness.cli import make_folder, user_errors, why_it_ended
from benchmarks.inference.backends import BACKENDS
from ds_distill.builds.fused_adam import start_build
from ds_distill.reporting.tables import table
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_atomically, write_json

SPARE = 15  # seconds kept for the report
LONGEST = 180  # limit for one part in seconds, so that a part that hangs leaves time for the others
NOT_ASKED, NOT_REACHED = "not asked for", "not reached"
STEP = ("benchmarks.training.step", "--size", "base")
AT_128, AT_512 = ("--sequences", "128", "--length", "128"), ("--sequences", "32", "--length", "512")
FEW = ("--only", "engine", "--repeats", "10")
RELATIONS = (
    *("benchmarks.training.relations", "--size", "base", "--dropout", "0.1"),
    *("--objective", "all", "--repeats", "10", "--backend", "auto"),
)
INFERENCE = (
    *("benchmarks.inference", "--heads", "encoder", "--batches", "1", "32", "--lengths", "128"),
    *("--threads", "1", "--rounds", "3"),
)

# Each part is (name, title, arguments); the order is that of importance.
PARTS = (
    (
        "checks",
        "numerics of every kernel, ZeRO 0–3, fp32, bf16, fp16",
        ("benchmarks.gpu.checks", "--seconds", str(LONGEST - 60)),
    ),
    (
        "step_128",
        "step, 128 × 128 tokens",
        (*STEP, *AT_128, "--only", "reference_bf16", "plain_loop", "engine", "gemms", "--profile"),
    ),
    ("large", "step, 512 × 128 tokens", (*STEP, "--sequences", "512", "--length", "128", *FEW)),
    (
        "head",
        "vocabulary loss, 16,384 tokens: kernels, matrix products and memory",
        ("benchmarks.training.vocab_loss", "--rows", "16384", "--memory-rows", "16384", "--triton"),
    ),
    (
        "fed",
        "step, 128 × 128 tokens, fed by the loader and on a fixed batch",
        (*STEP, *AT_128, "--only", "engine", "engine_fed", "engine_fed_by_thread", "--repeats", "10"),
    ),
    (
        "relations_128",
        "relations of queries, keys and values on one layer, 128 × 128 tokens: share of a step, and memory",
        (*RELATIONS, *AT_128, "--memory-sequences", "16", "--memory-length", "512"),
    ),
    (
        "relations_512",
        "relations of queries, keys and values on one layer, 64 × 512 tokens: share of a step",
        (*RELATIONS, "--sequences", "64", "--length", "512", "--memory-sequences", "16", "--memory-length", "512"),
    ),
    ("step_512", "step, 32 × 512 tokens", (*STEP, *AT_512, "--only", "reference_bf16", "engine", "gemms")),
    (
        "step_fp32",
        "step, compared with the reference implementation in fp32",
        (*STEP, *AT_128, "--only", "reference_fp32", "engine"),
    ),
    (
        "inference",
        "inference at the sizes of DistilBERT and BERT-base",
        (*INFERENCE, "--bodies", "gpu_fp32", "gpu_fp16", "gpu_compiled"),
    ),
    (
        "compiled",
        "step with torch.compile's kernel in the vocabulary loss",
        (*STEP, *AT_128, *FEW, "--backend", "compiled"),
    ),
    ("eager", "step without compiling", (*STEP, *AT_128, *FEW, "--backend", "torch")),
    ("no_dropout", "step without dropout", (*STEP, *AT_128, "--only", "engine", "gemms", "--dropout", "0")),
    ("fp16", "step in fp16", (*STEP, *AT_128, *FEW, "--precision", "fp16")),
    ("zero2", "step at ZeRO 2", (*STEP, *AT_128, *FEW, "--zero", "2")),
    ("zero3", "step at ZeRO 3", (*STEP, *AT_128, *FEW, "--zero", "3")),
    ("zero0", "step at ZeRO 0", (*STEP, *AT_128, *FEW, "--zero", "0")),
)
SMALL = {
    "--size": "tiny",
    "--sequences": "4",
    "--length": "32",
    "--rows": "256",
    "--memory-rows": "256",
    "--repeats": "2",
    "--lengths": "32",
    "--memory-sequences": "2",
    "--memory-length": "32",
    "--rounds": "1",
}
ON_A_CPU = {
    "auto": "torch",
    "fp16": "bf16",
    "gpu_fp32": "eager_fp32",
    "gpu_fp16": "eager_bf16",
    "gpu_compiled": "compiled_fp32",
}
GOAL_RATE = 0.6e6  # tokens/s on one H100 with KL over all tokens
GOAL_SHARE = 0.45  # of the square product's rate
GOAL_RELATIONS = 0.06  # of the time of a step


def rehearsed(arguments: tuple[str, ...]) -> list[str]:
    """Return the same command, small enough for a CPU and in its precisions."""
    small = [SMALL.get(before, argument) for before, argument in zip(("", *arguments), arguments, strict=False)]
    small += ["--vocabulary", "2000"] if "--size" in arguments or "--rows" in arguments else []
    return [ON_A_CPU.get(argument, argument) for argument in small if argument != "--triton"]


def run(arguments: list[str], seconds: float) -> dict:
    """Run a part and return its JSON, or {"why": …} if it has none.

    The result also has "said", the output before the JSON, and "seconds".
    """
    began = time.monotonic()
    job = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        out, log = job.communicate(timeout=seconds)
        why = why_it_ended(job.returncode, log)
    except subprocess.TimeoutExpired:
        end(job)
        out, log = job.communicate()
        why = f"not finished after {seconds:.0f} s"
    finally:
        end(job)
    lines = out.strip().splitlines()
    try:
        result = json.loads(lines[-1])
    except (IndexError, ValueError):
        result, lines = {"why": why}, [*lines, ""]
    if job.returncode:
        result["log"] = log[-4000:]  # the tracebacks of the parts that failed
    return result | {"said": "\n".join(lines[:-1]).strip(), "seconds": round(time.monotonic() - began, 1)}


def end(job: subprocess.Popen) -> None:
    """Kill a part's whole process group.

    Its child processes would otherwise keep the GPU's memory, and Ctrl-C does not reach them.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)


def summary_rows(parts: dict[str, dict]) -> list[dict]:
    """Return one row per step, with its figures or the reason why it was not measured."""
    peak = parts.get("checks", {}).get("square_gemm", {}).get("tflops")
    rows = []
    for name, title, arguments in PARTS:
        if arguments[0] != STEP[0]:
            continue
        part = parts[name]
        rate = part.get("engine")
        share = rate and peak and rate * part["mflops_per_token"] / 1e6 / peak
        rows.append(
            {
                "step": title,
                "tokens/s": round(rate) if rate else f"not measured: {part.get('why')}",
                "share": share and f"{100 * share:.0f} %",
                "memory": part.get("peak_mb", {}).get("engine"),
                "fp32": part.get("engine_vs_reference_fp32"),
                "bf16": part.get("engine_vs_reference_bf16"),
                "floor": part.get("gemm_bound_fraction"),
                "first": part.get("first_step_extra_s"),
            }
        )
    return rows


def verdicts(parts: dict[str, dict]) -> list[str]:
    """Return the conclusions from the figures, one sentence each."""
    checks, head = parts["checks"], parts["head"]
    sentences, goals = [numerics(checks)], []
    for name, title in (("step_128", "128 × 128"), ("large", "512 × 128")):
        if (rate := parts[name].get("engine")) and "square_gemm" in checks:
            share = rate * parts[name]["mflops_per_token"] / 1e6 / checks["square_gemm"]["tflops"]
            goals.append(
                f"{rate:,.0f} tokens/s and {100 * share:.0f} % with {title} tokens per step "
                f"({'met' if rate >= GOAL_RATE else 'not met'}, {'met' if share >= GOAL_SHARE else 'not met'})"
            )
    if goals:
        sentences.append(
            f"Goal of {GOAL_RATE:,.0f} tokens/s on one H100 and {100 * GOAL_SHARE:.0f} % of a square GEMM's rate: "
            f"{'; '.join(goals)}."
        )
    if {"fused_triton", "fused_compiled"} <= (ms := head.get("milliseconds", {})).keys():
        gain = ms["fused_compiled"] / ms["fused_triton"]
        sentences.append(
            f"The Triton kernel of the vocabulary loss is {gain:.2f}× as fast as torch.compile's, so "
            f"{'it stays the default on a GPU' if gain >= 1.1 else 'torch.compile should be the default'} "
            "(the limit is 1.10×)."
        )
    if {"engine_vs_engine_fed", "engine_vs_engine_fed_by_thread"} <= (fed := parts["fed"]).keys():
        sentences.append(
            f"Fed by the loader, a step takes {fed['engine_vs_engine_fed']:.2f}× the time of one on a fixed batch, or "
            f"{fed['engine_vs_engine_fed_by_thread']:.2f}× where a thread makes the batches."
        )
    for name, title in (("relations_128", "128 × 128"), ("relations_512", "64 × 512")):
        if share := parts[name].get("share_of_step", {}).get("relations"):
            sentences.append(
                f"Relations of queries, keys and values on one layer take {100 * share:.1f} % of a step of {title} "
                f"tokens (goal {100 * GOAL_RELATIONS:.0f} %: {'met' if share <= GOAL_RELATIONS else 'not met'})."
            )
    for batch in ("1", "32"):
        if ratios := parts["inference"].get("summary", {}).get(f"batch_{batch}_vs_base_same_body"):
            sentences.append(
                f"Speed of an encoder of DistilBERT's size relative to BERT-base's at {batch} × 128 tokens: "
                f"{', '.join(f'{value:.2f}× in {BACKENDS[backend].label}' for backend, value in ratios.items())}."
            )
    return sentences


def numerics(checks: dict) -> str:
    """Return the result of the checks in a sentence; it says that all limits hold only if all checks were made."""
    if "checks" not in checks:
        return f"Numerics: NOT CHECKED: {checks['why']}."
    count, broken, not_made = len(checks["checks"]), checks["broken"], checks["not_made"]
    reasons = "; ".join(f"{number} × {reason}" for reason, number in Counter(not_made.values()).items())
    clauses = [f"{len(broken)} of {count} limits DO NOT HOLD: {', '.join(broken)}"] if broken else []
    if not_made:
        clauses.append(f"{len(not_made)} of {count} checks NOT MADE ({reasons})")
        clauses += [] if broken else [f"the limits of the other {count - len(not_made)} hold"]
    return f"Numerics: {'; '.join(clauses) or f'all {count} limits hold'}."


def without_result(parts: dict[str, dict]) -> list[str]:
    """Return the parts and checks that make the exit status 1.

    Some kernels cannot run on a CPU, so checks that were not made there do not count.
    """
    checks = parts["checks"]
    not_made = list(checks.get("not_made", ())) if checks.get("device") == "cuda" else []
    return (
        [name for name, part in parts.items() if part.get("why", NOT_ASKED) != NOT_ASKED]
        + checks.get("broken", [])
        + not_made
    )


def write_report(folder: Path, parts: dict[str, dict], rehearsal: bool, seconds: float) -> str:
    """Write gpu_suite.md and gpu_suite.json; return the conclusion."""
    machine = next(
        (part["machine"] for part in parts.values() if "machine" in part), "unknown machine: no part reported it"
    )
    day, command = (
        datetime.date.today().isoformat(),
        shlex.join(["python", "-m", "benchmarks.gpu.suite", *sys.argv[1:]]),
    )
    columns = {
        "step": "BERT-base → DistilBERT, KL over all tokens",
        "tokens/s": "tokens/s",
        "share": "share of a square GEMM's rate",
        "memory": "peak memory (MB)",
        "fp32": "× reference, fp32",
        "bf16": "× reference, bf16 autocast",
        "floor": "share of the GEMM bound",
        "first": "extra time of the first step (s)",
    }
    conclusion = table(summary_rows(parts), columns) + "\n\n" + "\n".join(f"- {line}" for line in verdicts(parts))
    kind = "REHEARSAL on a CPU with small sizes: the figures mean nothing" if rehearsal else machine
    to_come = [name for name, part in parts.items() if part.get("why") == NOT_REACHED]
    cut_off = f" INTERRUPTED, or still running, before: {', '.join(to_come)}." if to_come else ""
    pages = [f"# GPU suite, {day}\n\n{kind}. `{command}`, {seconds:.0f} s.{cut_off}\n\n{conclusion}"]
    for name, title, arguments in PARTS:
        part = parts[name]
        log = f"\n\n```\n{part['log']}\n```" if part.get("log") else ""
        pages.append(
            f"## {title}\n\n`python -m {' '.join(arguments)}`, {part.get('seconds', 0)} s\n\n"
            + (part.get("said") or f"not measured: {part.get('why')}{log}")
        )
    write_atomically(folder / "gpu_suite.md", "\n\n".join(pages) + "\n")
    write_json(
        folder / "gpu_suite.json",
        {
            "date": day,
            "machine": machine,
            "command": command,
            "rehearsal": rehearsal,
            "verdicts": verdicts(parts),
            "parts": parts,
        },
    )
    return conclusion


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.5,
        help="time limit for the whole suite; parts for which no time is left are skipped (default 9.5)",
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="run with small sizes on a CPU, to test the suite without measuring"
    )
    parser.add_argument(
        "--only", nargs="*", choices=[name for name, *_ in PARTS], default=[], help="run only these parts"
    )
    args = parser.parse_args()
    with user_errors("benchmarks.gpu.suite"):
        return suite(args)


def suite(args: argparse.Namespace) -> int:
    """Run the parts and write the report; return the exit status."""
    if not torch.cuda.is_available() and not args.rehearse:
        raise UserError("torch finds no GPU on this machine; use --rehearse to test the suite on a CPU")
    make_folder("--report", args.report)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the part too, as Ctrl-C does
    began = time.monotonic()
    parts = {name: {"why": NOT_ASKED if args.only and name not in args.only else NOT_REACHED} for name, *_ in PARTS}
    start_build()  # DeepSpeed's FusedAdam, while the first part runs
    conclusion = ""
    for name, title, arguments in PARTS:
        if parts[name]["why"] == NOT_ASKED:
            continue
        left = 60 * args.minutes - SPARE - (time.monotonic() - began)
        if left < 20:
            parts[name] = {"why": "no time left"}
        else:
            with spinner(f"{name}: {title}"[:48]):
                parts[name] = run(rehearsed(arguments) if args.rehearse else list(arguments), min(left, LONGEST))
        conclusion = write_report(
            args.report, parts, args.rehearse, time.monotonic() - began
        )  # after each part, so that an interruption loses only the part in progress
    print(conclusion + "\n")
    failed = without_result(parts)
    print(
        json.dumps(
            {"report": str(args.report / "gpu_suite.md"), "rehearsal": args.rehearse, "not_measured_or_broken": failed}
        )
    )
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
