"""Measure the relation loss: its time as a share of a step, and its memory against the plain form.

    python -m benchmarks.training.relations
        the step of few_tokens.yaml: 6 × 384 teacher, student of half its layers, 16 × 128 tokens, one thread
    python -m benchmarks.training.relations --size base --sequences 128 --objective all --dropout 0.1

The loss is that of MiniLMv2, the relations of queries, keys and values on one layer, forward and
backward, from vectors that lie in memory as a layer leaves them. The step is the engine's, without
that loss. Both take turns in one process; an uncounted call precedes each counted one, and the
share is the median of the shares within a round. On a CPU, where others may be at work, times are
those of this process's threads (time.process_time), and on a GPU the clock's. Other processes still
take the caches away, so the shares of each job's fastest round stand beside.

Memory is the most that torch's allocator holds above what it held before, including the gradients,
for one relation at --memory-sequences × --memory-length tokens and --memory-heads heads. The last
line of standard output is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.harness.cli import count, user_errors
from benchmarks.harness.machine import describe, peak_allocated_bytes
from benchmarks.harness.timing import timed
from benchmarks.reference.recipe import reference_attention_score_mse, reference_relation_kl
from benchmarks.training import baselines
from benchmarks.training.step import add_setting, build_setting, check
from ds_distill.losses import attention_score_mse, relation_kl
from ds_distill.losses.match_checks import RELATION_HEAD
from ds_distill.models.precision import teacher_dtype
from ds_distill.training.device import local_device
from ds_distill.utils.console import spinner


def make_vectors(
    shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype, requires_grad: bool = False
) -> torch.Tensor:
    """Return random vectors [B, R, L, d], a view of [B, L, R · d] as a linear layer makes them."""
    sequences, heads, length, width = shape
    made = torch.randn(sequences, length, heads * width, device=device).to(dtype).requires_grad_(requires_grad)
    return made.view(sequences, length, heads, width).transpose(1, 2)


def make_loss(
    loss: Callable, shape: tuple[int, int, int, int], device: torch.device, dtypes: tuple[torch.dtype, torch.dtype]
) -> Callable[[], None]:
    """Return a function that computes QQ + KK + VV on random vectors, forward and backward."""
    student = [make_vectors(shape, device, dtypes[0], requires_grad=True) for _ in range(3)]
    teacher = [make_vectors(shape, device, dtypes[1]) for _ in range(3)]
    factor = 1.0 / (shape[0] * shape[1] * shape[2])

    def run() -> None:
        total = sum(loss(s, s, t, t) for s, t in zip(student, teacher, strict=True)) * factor
        torch.autograd.grad(total, student)

    return run


def cost(job: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `job` takes: of this process's threads on a CPU, the clock's on a GPU."""
    if device.type == "cuda":
        return timed(lambda: [job() for _ in range(8)], device) / 8  # a single call would time a GPU's start from idle
    began = time.process_time()
    job()
    return time.process_time() - began


def memory_of(loss: Callable, shape: tuple[int, int, int, int], device: torch.device) -> int:
    """Return the peak memory of one relation and its gradient in fp32, in bytes."""
    vectors = [make_vectors(shape, device, torch.float32, requires_grad=n < 1) for n in range(2)]
    student, teacher = vectors
    return peak_allocated_bytes(lambda: torch.autograd.grad(loss(student, student, teacher, teacher), student), device)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.relations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_setting(parser)
    parser.set_defaults(size="small", objective="masked", dropout=0.0, threads=1)
    parser.add_argument(
        "--relation-heads", type=count, default=None, help="relation heads (default: as losses.match, of width 16)"
    )
    parser.add_argument("--attention-heads", type=count, default=12, help="heads of the scores (default 12)")
    parser.add_argument("--repeats", type=count, default=7, help="rounds (default 7)")
    parser.add_argument("--memory-sequences", type=count, default=4, help="sequences for measuring memory (default 4)")
    parser.add_argument("--memory-length", type=count, default=512, help="their tokens (default 512)")
    parser.add_argument("--memory-heads", type=count, default=48, help="their relation heads (default 48)")
    args = parser.parse_args()
    with user_errors("benchmarks.training.relations"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    setting, device = build_setting(args), local_device()
    check(setting, device)
    with spinner("the engine's first step"):
        step, description = baselines.engine(setting, device)
        step()
    dtype = getattr(torch, description["dtype"])
    hidden = baselines.SIZES[setting.size][1]
    heads = args.relation_heads or hidden // RELATION_HEAD
    shape, of_scores = (
        (setting.sequences, number, setting.length, hidden // number) for number in (heads, args.attention_heads)
    )
    dtypes = (dtype, teacher_dtype(device, dtype))
    jobs = {
        "step": step,
        "relations": make_loss(relation_kl, shape, device, dtypes),
        "relations, plain": make_loss(reference_relation_kl, shape, device, dtypes),
        "attention scores": make_loss(attention_score_mse, of_scores, device, dtypes),
        "attention scores, plain": make_loss(reference_attention_score_mse, of_scores, device, dtypes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(args.repeats):
        for name, job in jobs.items():
            with spinner(f"round {number + 1} of {args.repeats}: {name}"):
                job()  # uncounted: it finds the caches as the others left them
                seconds[name].append(cost(job, device))
    share = {
        name: statistics.median(a / b for a, b in zip(took, seconds["step"], strict=True))
        for name, took in seconds.items()
    }
    memory_shape = (args.memory_sequences, args.memory_heads, args.memory_length, 16)
    memory = {
        name: memory_of(loss, memory_shape, device)
        for name, loss in {"fused": relation_kl, "plain": reference_relation_kl}.items()
    }
    result = {
        "milliseconds": {name: round(1e3 * statistics.median(took), 2) for name, took in seconds.items()},
        "share_of_step": {name: round(value, 4) for name, value in share.items() if name != "step"},
        "share_of_fastest": {name: round(min(took) / min(seconds["step"]), 4) for name, took in seconds.items()},
        "spread": {name: round(max(took) / min(took), 2) for name, took in seconds.items()},
        "memory_mb": {name: round(size / 1e6, 1) for name, size in memory.items()},
        "memory_share": round(memory["fused"] / memory["plain"], 4),
        "memory_shape": memory_shape,
        "dtype": description["dtype"],
        "heads": heads,
        "attention_heads": args.attention_heads,
        "rounds": args.repeats,
        "machine": describe(device),
    } | {name: getattr(setting, name) for name in ("size", "sequences", "length", "objective", "threads")}
    print(
        f"{setting.sequences} × {setting.length} tokens, {heads} relation heads, {args.attention_heads} attention "
        f"heads, {description['dtype']}, {result['machine']}, {args.threads} threads\n"
    )
    print("| QQ + KK + VV on one layer | ms | share of the step | in the fastest rounds |\n|---|---|---|---|")
    for name in jobs:
        fastest = result["share_of_fastest"][name]
        print(f"| {name} | {result['milliseconds'][name]:,} | {100 * share[name]:.1f} % | {100 * fastest:.1f} % |")
    sequences, number, length, _ = memory_shape
    print(
        f"\nmemory of one relation, {sequences} × {length} tokens, {number} heads of 16, fp32: fused "
        f"{result['memory_mb']['fused']:,} MB, plain {result['memory_mb']['plain']:,} MB "
        f"({100 * result['memory_share']:.2f} %)"
    )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
