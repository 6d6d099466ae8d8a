"""Training throughput: the engine's step against the plain recipe, in fp32 and under bf16 autocast, interleaved in one process.

    python -m benchmarks.training                           BERT-base teacher, DistilBERT student, 16 × 128 tokens, random weights
    python -m benchmarks.training --repeats 9 --output benchmarks/results/training-cpu.json

All three run the same objective: KL over all tokens, masked-LM, cosine, dropout 0.1, clipping, AdamW. Machines are noisy, so contenders
take turns and ratios are medians of ratios within a round. The GEMM floor is what the step's matrix products alone would take at the
rate this machine reaches on one of them: no step in the same precision can be faster. A contender whose first step takes longer than
--patience is not asked again: that step is its measurement, and the output says so. The last line of standard output is JSON.
"""

import argparse
import contextlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM
from transformers.utils import logging as transformers_logging

from benchmarks.machine import describe, peak_bytes
from benchmarks.reference import reference_step
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Training
from ds_distill.training.compiled import why_no_compile
from ds_distill.training.engine import backward, device_of_rank, make_engine, optimizer_step, precision_of
from ds_distill.training.forecast import flops_a_token
from ds_distill.training.objective import Objective
from ds_distill.training.ranks import start_distributed


def gemm_rate(device: torch.device, dtype: torch.dtype, rows: int, hidden: int) -> float:
    """Floating-point operations a second of [rows, H] × [H, 4H], the step's most frequent product: median of 9 after 3 to warm up."""
    left, right = torch.randn(rows, hidden, device=device).to(dtype), torch.randn(hidden, 4 * hidden, device=device).to(dtype)
    seconds = [timed(lambda: left @ right, device) for _ in range(12)][3:]
    return 2 * rows * hidden * 4 * hidden / statistics.median(seconds)


@contextlib.contextmanager
def alive(what: str):
    """Show `what` and the seconds it has taken so far."""
    done, began = threading.Event(), time.monotonic()

    def show() -> None:
        while True:
            print(f"\r{what}, {time.monotonic() - began:.0f} s  ".ljust(50), end="", file=sys.stderr, flush=True)
            if done.wait(2):
                return

    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    try:
        yield
    finally:
        done.set()
        shower.join()


def timed(job: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def profiled(step: Callable[[], object], device: torch.device) -> str:
    """One step's time by operator, its own without what it calls, as a table."""
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with torch.profiler.profile(activities=activities) as profile:
        timed(step, device)
    return profile.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=16, max_name_column_width=40)


def random_batch(config: BertConfig, sequences: int, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, labels), [B, L] int64; 15 % of the positions masked."""
    ids = torch.randint(1000, config.vocab_size, (sequences, length))
    labels = torch.where(torch.rand(sequences, length) < 0.15, ids, -100)
    return ids.to(device), labels.to(device)


def reference_contender(teacher, student, options: dict, batch: tuple, device: torch.device, autocast: bool) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(student.parameters(), **options)
    ids, labels = batch

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            reference_step(student, teacher, optimizer, (ids, labels, None))

    return step


def engine_contender(teacher: Teacher, student, training: Training, dtype: torch.dtype, batch: tuple, device: torch.device):
    """The step as the training loop runs it."""
    objective = Objective(student, Losses(), 1, compiled=why_no_compile() is None)
    engine = make_engine(objective, training, accumulation=1, total_steps=10**6, device=device, dtype=dtype)
    engine.train()
    ids, labels = batch
    counts = ids.numel(), int((labels >= 0).sum())

    def step() -> None:
        loss, sums = engine(ids, None, labels, counts, teacher.targets(ids))
        backward(engine, loss)
        optimizer_step(engine)
        sums.tolist()  # the loop reads the losses too

    return step


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every contender once (default 5)")
    parser.add_argument("--sequences", type=int, default=16, help="sequences a step (default 16)")
    parser.add_argument("--length", type=int, default=128, help="tokens a sequence (default 128)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--layers", type=int, default=12, help="the teacher's layers; the student has half (default 12)")
    parser.add_argument("--hidden", type=int, default=768, help="hidden size, 64 a head (default 768)")
    parser.add_argument("--vocabulary", type=int, default=30_522, help="vocabulary (default 30522)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="the engine's; auto as in training")
    parser.add_argument("--skip", nargs="*", choices=["reference_bf16", "engine"], default=[], help="contenders to leave out")
    parser.add_argument("--patience", type=float, default=60, help="seconds a contender's first step may take to be asked again (default 60)")
    parser.add_argument("--profile", action="store_true", help="after the rounds, print where one engine step spends its time, by operator")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    args = parser.parse_args()

    transformers_logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    start_distributed()
    device = device_of_rank()
    config = BertConfig(vocab_size=args.vocabulary, hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=args.hidden // 64,
                        intermediate_size=4 * args.hidden, max_position_embeddings=max(512, args.length))  # fmt: skip
    bert = BertForMaskedLM(config).eval()
    student = lambda: build_student(bert, dropout=0.1)  # noqa: E731
    batch = random_batch(config, args.sequences, args.length, device)
    training = Training(global_batch=args.sequences, micro_batch=args.sequences, precision=args.precision)
    dtype = precision_of(training, device)
    options = {"lr": training.learning_rate, "betas": training.betas, "eps": training.eps, "weight_decay": 0.0}
    frozen = Teacher(BertForMaskedLM(config).to(device=device, dtype=torch.float16 if device.type == "cuda" else dtype))
    frozen.model.load_state_dict(bert.state_dict())
    plain = bert.to(device).requires_grad_(False)
    contenders = {"reference_fp32": reference_contender(plain, student().to(device), options, batch, device, autocast=False)}
    if "reference_bf16" not in args.skip:
        contenders["reference_bf16"] = reference_contender(plain, student().to(device), options, batch, device, autocast=True)
    if "engine" not in args.skip:
        contenders["engine"] = engine_contender(frozen, student(), training, dtype, batch, device)

    memory, seconds, once = {}, {name: [] for name in contenders}, []
    for number in range(-1, args.repeats):
        for name, step in contenders.items():
            if name in once:
                continue
            with alive(f"{'warm-up' if number < 0 else f'round {number + 1} of {args.repeats}'}: {name}"):
                if number >= 0:
                    seconds[name].append(timed(step, device))
                    continue
                began = time.perf_counter()
                memory[name] = peak_bytes(step, device)
                first = time.perf_counter() - began
                if first > args.patience:
                    once.append(name)
                    seconds[name] = [first]
                else:
                    memory[name] = peak_bytes(step, device)  # the first step also allocates the optimizer's state
    print(file=sys.stderr)
    if args.profile and "engine" in contenders:
        print(profiled(contenders["engine"], device))

    tokens = args.sequences * args.length
    flops = flops_a_token(config, student().config, args.length)
    floor = gemm_rate(device, dtype, tokens, args.hidden) / flops
    result = {name: round(tokens / statistics.median(times), 1) for name, times in seconds.items()}
    for name in ("reference_fp32", "reference_bf16"):
        if name in seconds and "engine" in seconds:
            theirs, mine = (seconds[key] * (args.repeats if key in once else 1) for key in (name, "engine"))
            ratios = [a / b for a, b in zip(theirs, mine, strict=True)]
            result[f"engine_vs_{name}"] = round(statistics.median(ratios), 3)
    result |= {"gemm_floor": round(floor, 1), "engine_dtype": str(dtype).removeprefix("torch."), "mflops_a_token": round(flops / 1e6, 1)}
    result["peak_mb_of_a_step"] = {name: round(size / 1e6) for name, size in memory.items()}
    result |= {"first_step_only": once, "rounds": args.repeats, "shape": [args.sequences, args.length], "threads": args.threads}
    result["machine"] = describe(device)
    print(f"{tokens} tokens a step ({args.sequences} × {args.length}), {flops / 1e6:.0f} MFLOP a token, {describe(device)}, {args.threads} threads\n")
    print("| contender | tokens/s | peak memory of a step (MB) |\n|---|---|---|")
    for name in seconds:
        print(f"| {name}{' (its first step only)' if name in once else ''} | {result[name]:,} | {result['peak_mb_of_a_step'][name]:,} |")
    print(f"| GEMM floor in {result['engine_dtype']} | {result['gemm_floor']:,} | |\n")
    for name in ("reference_fp32", "reference_bf16"):
        if f"engine_vs_{name}" in result:
            print(f"engine against {name}: {result[f'engine_vs_{name}']}×")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
