"""Measure how the step scales from one rank to two, and project the result to N ranks.

    python -m benchmarks.training.scaling
        BERT-base teacher, DistilBERT student, 16 × 128 tokens per rank
    python -m benchmarks.training.scaling --size small --sequences 4
    python -m benchmarks.training.scaling --step 0.0137 --gigabytes-per-second 300 --ranks 8 64 512
        projects from a step and a network that were measured elsewhere

This is weak scaling: each rank has its own sequences. On a CPU, each rank has one thread
(--threads). Four variants take turns:

    one rank       a job of one rank
    two alone      two such jobs at once, which exchange nothing; they share caches, memory and
                   turbo, and what that costs is not the engine's doing
    two ranks      one job of two ranks
    collectives    the collectives of that job alone, on the bytes of this ZeRO stage

The projected step of N ranks is the time of the ranks alone plus bytes ÷ rate. In a ring, each rank
moves 2 (N − 1) ÷ N of all gradients (fp32) and (N − 1) ÷ N of the new weights. The projection
assumes that the rate of two ranks holds for all N, and that nothing overlaps with the backward
pass, which is the worst case. The projection for two ranks is compared with their measured step.
With --step, there is only the projection, from the given step and rate. The last line of standard
output is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable

import torch

from benchmarks.harness.cli import amount, count, user_errors
from benchmarks.harness.interleave import Variant, ratio, run_interleaved
from benchmarks.harness.machine import describe
from benchmarks.training import baselines
from benchmarks.training.step import add_setting, build_setting, check
from ds_distill.distributed.process_group import start_distributed
from ds_distill.models.student import count_parameters
from ds_distill.training.deepspeed_config import resolve_zero_config


def bytes_moved(parameters: int, stage: int, size: int, ranks: int) -> float:
    """Return the number of bytes that each rank sends per step.

    Gradients are all-reduced in fp32 (at stage 0 in the weights' `size` bytes). From stage 1 on,
    weights are all-gathered.
    """
    around = (ranks - 1) / ranks
    return around * (2 * parameters * (4 if stage else size) + (parameters * size if stage else 0))


def collectives(setting: baselines.Setting, device: torch.device) -> tuple[Callable, dict]:
    """Return a variant that only runs the collectives of a step."""
    start_distributed()
    dtype, ranks = setting.dtype(device), torch.distributed.get_world_size()
    stage, numbers = (
        resolve_zero_config(setting.training, dtype)["stage"],
        count_parameters(setting.models(torch.device("cpu"))[1]),
    )
    gradients = torch.zeros(numbers, device=device, dtype=torch.float32 if stage else dtype)
    part = torch.zeros(-(-numbers // ranks), device=device, dtype=dtype)
    weights = part.new_zeros(ranks * len(part))

    def step() -> None:
        torch.distributed.all_reduce(gradients)
        if stage:
            torch.distributed.all_gather_into_tensor(weights, part)

    return step, {
        "parameters": numbers,
        "stage": stage,
        "size": dtype.itemsize,
        "bytes": bytes_moved(numbers, stage, dtype.itemsize, ranks),
    }


def measure(setting: baselines.Setting, rounds: int) -> dict:
    """Measure the four variants of this benchmark.

    Returns:
        Seconds per step of one rank, two alone, two as one job, and the collectives, with the bytes
        that each rank moves and their rate.
    """
    one, alone, two, talk = variants = [
        Variant("one rank", baselines.engine, setting),
        Variant("two alone", baselines.engine, setting, jobs=2),
        Variant("two ranks", baselines.engine, setting, ranks=2),
        Variant("collectives", collectives, setting, ranks=2),
    ]
    try:
        run_interleaved(variants, rounds)
    finally:
        for variant in variants:
            variant.stop()
    seconds = {variant.name: statistics.median(variant.seconds) for variant in variants}
    projected = [a + b for a, b in zip(alone.seconds, talk.seconds, strict=True)]
    return talk.description | {
        "seconds": seconds,
        "gb_per_second": talk.description["bytes"] / seconds["collectives"] / 1e9,
        "efficiency": round(ratio(one.seconds, two.seconds), 3),
        "efficiency_alone": round(ratio(one.seconds, alone.seconds), 3),
        "projected_vs_measured": round(ratio(projected, two.seconds), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_setting(parser)
    parser.set_defaults(threads=1)
    parser.add_argument("--repeats", type=count, default=5, help="rounds (default 5)")
    parser.add_argument(
        "--ranks",
        type=count,
        nargs="+",
        default=[4, 8, 64, 512],
        help="numbers of ranks to project to (default 4 8 64 512)",
    )
    parser.add_argument(
        "--step", type=amount, help="seconds per step of one rank, measured elsewhere; nothing is then measured here"
    )
    parser.add_argument(
        "--gigabytes-per-second", type=amount, help="with --step: bandwidth per rank, in 10⁹ bytes per second"
    )
    args = parser.parse_args()
    if (args.step is None) != (args.gigabytes_per_second is None):
        parser.error("--step and --gigabytes-per-second must be given together")
    if args.zero in (2, 3):
        parser.error("--zero: must be 0 or 1; this projection does not model the traffic of stages 2 and 3")
    if args.step is None and torch.cuda.device_count() == 1:
        parser.error("two ranks need two GPUs; --step and --gigabytes-per-second project from a step measured on one")
    with user_errors("benchmarks.training.scaling"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    setting, device = build_setting(args), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = setting.sequences * setting.length
    if args.step is None:
        check(setting, device)
        result = measure(setting, args.repeats)
        step, rate, alone = result["seconds"]["two alone"], result["gb_per_second"], result["seconds"]["one rank"]
        print(
            f"teacher {setting.size}, {setting.sequences} × {setting.length} tokens and {setting.threads} thread(s) "
            f"per rank, ZeRO {result['stage']}, {describe(device)}\n\n"
            "| | seconds per step | tokens/s | rate per rank ÷ that of one rank |\n|---|---|---|---|"
        )
        for name, ranks, share in (
            ("one rank", 1, 1.0),
            ("two alone", 2, result["efficiency_alone"]),
            ("two ranks", 2, result["efficiency"]),
        ):
            print(
                f"| {name} | {result['seconds'][name]:.4g} | {ranks * tokens / result['seconds'][name]:,.0f} | "
                f"{100 * share:.0f} % |"
            )
        print(
            f"\nEach rank sends {result['bytes'] / 1e6:,.0f} MB per step, which without computation takes "
            f"{result['seconds']['collectives']:.4g} s ({rate:.3g} GB/s). "
            f"Projected ÷ measured step of two ranks: {result['projected_vs_measured']}\n"
        )
    else:
        count, size = count_parameters(setting.models(torch.device("cpu"))[1]), 4 if setting.precision == "fp32" else 2
        result = {
            "parameters": count,
            "stage": setting.zero if setting.zero is not None else int(size == 2),
            "size": size,
        }
        step, rate, alone = args.step, args.gigabytes_per_second, args.step
    rows = []
    for ranks in args.ranks:
        moved = bytes_moved(result["parameters"], result["stage"], result["size"], ranks)
        took = step + moved / rate / 1e9
        rows.append(
            {
                "ranks": ranks,
                "step": took,
                "tokens_per_second": ranks * tokens / took,
                "efficiency": alone / took,
                "megabytes": moved / 1e6,
            }
        )
    print(
        f"Projected from a step of {step:.4g} s and {rate:.4g} GB/s per rank, without overlap:\n\n"
        "| ranks | MB sent per rank | seconds per step | tokens/s | rate per rank ÷ that of one rank |\n"
        "|---|---|---|---|---|"
    )
    for row in rows:
        print(
            f"| {row['ranks']} | {row['megabytes']:,.0f} | {row['step']:.4g} | {row['tokens_per_second']:,.0f} | "
            f"{100 * row['efficiency']:.0f} % |"
        )
    print()
    print(json.dumps(result | vars(setting) | {"projection": rows, "machine": describe(device)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
