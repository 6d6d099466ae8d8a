"""All that is to be measured on a GPU, in one command and under ten minutes, into one report.

    python -m benchmarks.gpu_suite --report benchmarks/results/h100
    python -m benchmarks.gpu_suite --rehearse --report /tmp/rehearsal       small, on a CPU: whether the suite itself works; no figure counts

Each part is another benchmark of this folder in a process of its own, in the order of importance; a part that fails or for which no time is left is
reported as such and the others go on. Needs torch, transformers, triton and DeepSpeed, neither datasets nor an argument parser beyond Python's.
gpu_suite.md and gpu_suite.json lie in the report's folder; what matters is printed last, and the very last line is JSON.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.machine import describe
from ds_distill.console import alive
from ds_distill.report import table
from ds_distill.training.kernels import build_ahead

SPARE = 15  # seconds kept for the report
LONGEST = 180  # seconds of one part: a part that hangs leaves time to the others
STEP = ("benchmarks.training", "--size", "base")
AT_128, AT_512 = ("--sequences", "128", "--length", "128"), ("--sequences", "32", "--length", "512")
FEW = ("--only", "engine", "--repeats", "10")

# name, what it is, arguments; in the order of importance
PARTS = (
    ("checks", "numerics of every kernel, ZeRO 0–3, fp32, bf16, fp16", ("benchmarks.gpu_checks", "--seconds", str(LONGEST - 60))),
    ("step_128", "step, 128 × 128 tokens", (*STEP, *AT_128, "--only", "reference_bf16", "plain_loop", "engine", "gemms", "--profile")),
    ("large", "step, 512 × 128 tokens", (*STEP, "--sequences", "512", "--length", "128", *FEW)),
    ("head", "vocabulary loss, 16,384 tokens: its bodies, its products, its memory",
     ("benchmarks.head", "--rows", "16384", "--memory-rows", "16384", "--triton")),
    ("step_512", "step, 32 × 512 tokens", (*STEP, *AT_512, "--only", "reference_bf16", "engine", "gemms")),
    ("step_fp32", "step, against the plain recipe in fp32", (*STEP, *AT_128, "--only", "reference_fp32", "engine")),
    ("compiled", "step with torch.compile's kernel in the vocabulary loss", (*STEP, *AT_128, *FEW, "--passes", "compiled")),
    ("eager", "step without compiling", (*STEP, *AT_128, *FEW, "--passes", "torch")),
    ("no_dropout", "step without dropout", (*STEP, *AT_128, "--only", "engine", "gemms", "--dropout", "0")),
    ("fp16", "step in fp16", (*STEP, *AT_128, *FEW, "--precision", "fp16")),
    ("zero2", "step at ZeRO 2", (*STEP, *AT_128, *FEW, "--zero", "2")),
    ("zero3", "step at ZeRO 3", (*STEP, *AT_128, *FEW, "--zero", "3")),
    ("zero0", "step at ZeRO 0", (*STEP, *AT_128, *FEW, "--zero", "0")),
)  # fmt: skip
SMALL = {"--size": "tiny", "--sequences": "4", "--length": "32", "--rows": "256", "--memory-rows": "256", "--repeats": "2"}
GOAL_RATE, GOAL_SHARE = 0.6e6, 0.45  # tokens/s on one H100 with KL over all tokens, and share of the square product's rate


def rehearsed(arguments: tuple[str, ...]) -> list[str]:
    """The same command, small enough for a CPU and in its precisions."""
    small = [SMALL.get(before, argument) for before, argument in zip(("", *arguments), arguments, strict=False)]
    small += ["--vocabulary", "2000"] if arguments[0] != "benchmarks.gpu_checks" else []
    return [{"fp16": "bf16"}.get(argument, argument) for argument in small if argument != "--triton"]


def run(arguments: list[str], seconds: float) -> dict:
    """A part's JSON, or {"why": …}; with "said", what it printed before it, and "seconds"."""
    began = time.monotonic()
    job = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        out, log = job.communicate(timeout=seconds)
        why = f"exit status {job.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)  # its contenders too: they would keep the GPU's memory
        out, log = job.communicate()
        why = f"not done after {seconds:.0f} s"
    lines = out.strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        found, lines = {"why": f"{why}: {(log.strip().splitlines() or [''])[-1][:300]}"}, [*lines, ""]
    if job.returncode:
        found["log"] = log[-4000:]  # the tracebacks of what did not run
    return found | {"said": "\n".join(lines[:-1]).strip(), "seconds": round(time.monotonic() - began, 1)}


def summary_rows(found: dict[str, dict]) -> list[dict]:
    """A row a step that was measured, or that was not and why."""
    peak = found.get("checks", {}).get("square_gemm", {}).get("tflops")
    rows = []
    for name, title, arguments in PARTS:
        if arguments[0] != STEP[0]:
            continue
        part = found[name]
        rate = part.get("engine")
        share = rate and peak and rate * part["mflops_a_token"] / 1e6 / peak
        rows.append({
            "step": title, "tokens/s": round(rate) if rate else f"not measured: {part.get('why')}", "share": share and f"{100 * share:.0f} %",
            "memory": part.get("peak_mb_of_a_step", {}).get("engine"), "fp32": part.get("engine_vs_reference_fp32"),
            "bf16": part.get("engine_vs_reference_bf16"), "floor": part.get("gemm_floor_share"), "first": part.get("first_step_extra_s"),
        })  # fmt: skip
    return rows


def verdicts(found: dict[str, dict]) -> list[str]:
    """What follows from the figures, a sentence each."""
    said, checks, head = [], found["checks"], found["head"]
    if "checks" in checks:
        broken = checks["broken"]
        said.append(f"Numerics: {'all limits hold' if not broken else 'DO NOT HOLD: ' + ', '.join(broken)}; "
                    f"{sum(row['error'] is None for row in checks['checks'])} of {len(checks['checks'])} not measured.")  # fmt: skip
    goals = []
    for name, title in (("step_128", "128 × 128"), ("large", "512 × 128")):
        if (rate := found[name].get("engine")) and "square_gemm" in checks:
            share = rate * found[name]["mflops_a_token"] / 1e6 / checks["square_gemm"]["tflops"]
            goals.append(f"{rate:,.0f} tokens/s and {100 * share:.0f} % with {title} tokens a step ({'met' if rate >= GOAL_RATE else 'not met'}, "
                         f"{'met' if share >= GOAL_SHARE else 'not met'})")  # fmt: skip
    if goals:
        said.append(f"Goal of {GOAL_RATE:,.0f} tokens/s on one H100 and {100 * GOAL_SHARE:.0f} % of the square product: {'; '.join(goals)}.")
    if {"fused_triton", "fused_compiled"} <= (ms := head.get("milliseconds", {})).keys():
        gain = ms["fused_compiled"] / ms["fused_triton"]
        said.append(f"Triton kernel against torch.compile in the vocabulary loss: {gain:.2f}×, so "
                    f"{'it stays the default on a GPU' if gain >= 1.1 else 'torch.compile should be the default'} (1.10× is asked for).")  # fmt: skip
    return said or ["Nothing was measured."]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True, help="folder of the report")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it; parts that no time is left for are left out (default 9.5)")
    parser.add_argument("--rehearse", action="store_true", help="small and on a CPU: no measurement")
    parser.add_argument("--only", nargs="*", choices=[name for name, *_ in PARTS], default=[], help="only these parts")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.rehearse:
        print("benchmarks.gpu_suite: torch sees no GPU here; --rehearse shows on a CPU that the suite works", file=sys.stderr)
        return 2
    began, found = time.monotonic(), {}
    build_ahead()  # DeepSpeed's FusedAdam, while the first part runs
    for name, title, arguments in PARTS:
        left = 60 * args.minutes - SPARE - (time.monotonic() - began)
        if args.only and name not in args.only:
            found[name] = {"why": "not asked for"}
        elif left < 20:
            found[name] = {"why": "no time left"}
        else:
            with alive(f"{name}: {title}"[:48]):
                found[name] = run(rehearsed(arguments) if args.rehearse else list(arguments), min(left, LONGEST))
    machine, day = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu")), datetime.date.today().isoformat()
    columns = {"step": "BERT-base → DistilBERT, KL over all tokens", "tokens/s": "tokens/s", "share": "of the square product's rate", "memory": "MB",
               "fp32": "× plain recipe fp32", "bf16": "× bf16 autocast", "floor": "of its products' rate", "first": "first step's extra s"}  # fmt: skip
    conclusion = table(summary_rows(found), columns) + "\n\n" + "\n".join(f"- {line}" for line in verdicts(found))
    kind = "REHEARSAL on a CPU, small sizes: no figure counts" if args.rehearse else machine
    pages = [f"# GPU suite, {day}\n\n{kind}. `python -m benchmarks.gpu_suite`, {time.monotonic() - began:.0f} s.\n\n{conclusion}"]
    for name, title, arguments in PARTS:
        part = found[name]
        pages.append(f"## {title}\n\n`python -m {' '.join(arguments)}`, {part.get('seconds', 0)} s\n\n"
                     + (part.get("said") or f"not measured: {part.get('why')}\n\n```\n{part.get('log', '')}\n```"))  # fmt: skip
    args.report.mkdir(parents=True, exist_ok=True)
    (args.report / "gpu_suite.md").write_text("\n\n".join(pages) + "\n")
    result = {"date": day, "machine": machine, "rehearsal": args.rehearse, "verdicts": verdicts(found), "parts": found}
    (args.report / "gpu_suite.json").write_text(json.dumps(result, indent=1) + "\n")
    print(conclusion + "\n")
    failed = [name for name, part in found.items() if "why" in part and part["why"] != "not asked for"] + found["checks"].get("broken", [])
    print(json.dumps({"report": str(args.report / "gpu_suite.md"), "rehearsal": args.rehearse, "not_measured_or_broken": failed}))
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
