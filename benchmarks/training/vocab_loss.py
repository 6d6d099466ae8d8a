"""Measure the vocabulary loss: its time against its GEMM bound, its memory against the reference implementation.

    python -m benchmarks.training.vocab_loss
        hidden 768, vocabulary 30,522, time at 2,048 tokens and memory at 8,192
    python -m benchmarks.training.vocab_loss --hidden 384

The GEMM bound is the time of four matrix products: both logits, and the gradients of the hidden
states and of the weight. They run in the same precision and write to preallocated buffers. The
output calls them "products".

The fused loss (compiled, and on torch's own operators) and the plain one take turns. An uncounted
call precedes each counted one, and ratios are medians of the ratios within a round. Memory is the
most in use above the memory in use before, including gradients of the inputs. The last line of
standard output is JSON.
"""

import argparse
import json
import statistics

import torch
import torch.nn.functional as F

from benchmarks.harness.cli import count, user_errors
from benchmarks.harness.machine import describe, peak_bytes
from benchmarks.harness.timing import timed
from ds_distill.distributed.process_group import start_distributed
from ds_distill.kernels.fused_linear import padded_vocab_size
from ds_distill.losses import fused_linear_distillation_loss
from ds_distill.recipe import Training
from ds_distill.training.compile import compile_unavailable_reason
from ds_distill.training.device import local_device, resolve_dtype
from ds_distill.utils.console import spinner


def make_inputs(
    rows: int, hidden: int, vocabulary: int, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return hidden states, weights and biases of student and teacher, and labels with 15 % of them masked."""
    make = lambda *shape, scale=1.0: (torch.randn(*shape, device=device) * scale).to(dtype)  # noqa: E731
    ids = torch.randint(vocabulary, (rows,), device=device)
    return {
        "h": make(rows, hidden).requires_grad_(),
        "w": make(vocabulary, hidden, scale=0.05).requires_grad_(),
        "b": make(vocabulary).requires_grad_(),
        "th": make(rows, hidden),
        "tw": make(vocabulary, hidden, scale=0.05),
        "tb": make(vocabulary),
        "labels": torch.where(torch.rand(rows, device=device) < 0.15, ids, -100),
    }


def fused(x: dict, backend: str) -> None:
    """Run the fused loss, forward and backward."""
    rows, masked = len(x["h"]), int((x["labels"] >= 0).sum())
    loss, *_ = fused_linear_distillation_loss(
        x["h"],
        x["w"],
        x["b"],
        x["th"],
        x["tw"],
        x["tb"],
        x["labels"],
        temperature=2.0,
        kl_weight=5.0 / rows,
        mlm_weight=2.0 / masked,
        backend=backend,
    )
    loss.backward()
    clear(x)


def plain(x: dict) -> None:
    """Run the loss of benchmarks/reference/recipe.py, starting from the hidden states."""
    with torch.no_grad():
        t = F.linear(x["th"], x["tw"], x["tb"])
    z = F.linear(x["h"], x["w"], x["b"])
    kl = (
        F.kl_div(F.log_softmax(z.float() / 2.0, dim=-1), F.softmax(t.float() / 2.0, dim=-1), reduction="batchmean")
        * 4.0
    )
    (5.0 * kl + 2.0 * F.cross_entropy(z.float(), x["labels"], ignore_index=-100)).backward()
    clear(x)


def clear(x: dict) -> None:
    """Remove the gradients of the student's inputs."""
    for name in "hwb":
        x[name].grad = None


def bare(x: dict):
    """Return a function that runs the four products, with the number of columns that makes them fastest."""
    with torch.no_grad():
        padding = padded_vocab_size(len(x["w"]), x["w"].device.type) - len(x["w"])
        h, w, tw = (
            x["h"].detach(),
            *(torch.nn.functional.pad(x[name].detach(), (0, 0, 0, padding)) for name in ("w", "tw")),
        )
        g, out, dh, dw = torch.randn_like(h @ w.t()), h @ w.t(), torch.empty_like(h), torch.empty_like(w)

    def run() -> None:
        torch.mm(h, w.t(), out=out)
        torch.mm(x["th"], tw.t(), out=out)
        torch.mm(g, w, out=dh)
        torch.mm(g.t(), h, out=dw)

    return torch.no_grad()(run)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.vocab_loss",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=count, default=2048, help="tokens for measuring time (default 2048)")
    parser.add_argument("--memory-rows", type=count, default=8192, help="tokens for measuring memory (default 8192)")
    parser.add_argument("--hidden", type=count, default=768, help="hidden size (default 768)")
    parser.add_argument("--vocabulary", type=count, default=30_522, help="vocabulary size (default 30522)")
    parser.add_argument("--repeats", type=count, default=7, help="rounds (default 7)")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads (default 2)")
    parser.add_argument("--triton", action="store_true", help="also measure the Triton kernel, on a GPU")
    args = parser.parse_args()
    with user_errors("benchmarks.training.vocab_loss"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    start_distributed()
    device = local_device()
    dtype = resolve_dtype(Training(), device)
    x = make_inputs(args.rows, args.hidden, args.vocabulary, device, dtype)
    jobs = {"products": bare(x), "fused": lambda: fused(x, "torch"), "plain": lambda: plain(x)}
    if (reason := compile_unavailable_reason()) is None:
        jobs["fused_compiled"] = lambda: fused(x, "compiled")
    else:
        print(f"not compiled: {reason}")
    if args.triton:
        jobs["fused_triton"] = lambda: fused(x, "triton")
    calls = 10 if device.type == "cuda" else 1  # a single call would time a GPU's start from idle
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(-1, args.repeats):
        for name, job in jobs.items():
            with spinner(f"{'warm-up' if number < 0 else f'round {number + 1} of {args.repeats}'}: {name}"):
                job()  # uncounted: it finds the caches as the others left them
                took = timed(lambda: [job() for _ in range(calls)], device) / calls  # noqa: B023
            if number >= 0:
                seconds[name].append(took)
    big = make_inputs(args.memory_rows, args.hidden, args.vocabulary, device, dtype)
    memory = {}
    for name, job in {
        "fused": lambda: fused(big, "compiled" if "fused_compiled" in jobs else "torch"),
        "plain": lambda: plain(big),
    }.items():
        with spinner(f"memory: {name}"):
            memory[name] = peak_bytes(job, device)
    ratio = {
        name: statistics.median(a / b for a, b in zip(took, seconds["products"], strict=True))
        for name, took in seconds.items()
    }
    result = {
        "milliseconds": {name: round(1e3 * statistics.median(took), 1) for name, took in seconds.items()},
        "times_bare_products": {name: round(value, 3) for name, value in ratio.items() if name != "products"},
        "memory_mb": {name: round(size / 1e6) for name, size in memory.items()},
        "memory_share": round(memory["fused"] / memory["plain"], 4),
        "rows": args.rows,
        "memory_rows": args.memory_rows,
        "hidden": args.hidden,
        "vocabulary": args.vocabulary,
        "rounds": args.repeats,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": args.threads,
        "machine": describe(device),
    }
    print(
        f"{args.rows} tokens, hidden {args.hidden}, vocabulary {args.vocabulary:,}, {result['dtype']}, "
        f"{result['machine']}, {args.threads} threads\n"
    )
    print("| | ms | × the GEMM bound |\n|---|---|---|")
    for name in jobs:
        print(f"| {name} | {result['milliseconds'][name]:,} | {result['times_bare_products'].get(name, 1.0)} |")
    print(
        f"\nmemory at {args.memory_rows} tokens: fused {result['memory_mb']['fused']:,} MB, "
        f"plain {result['memory_mb']['plain']:,} MB ({100 * result['memory_share']:.1f} %)"
    )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
