"""Training throughput: the engine's step, the plain recipe in fp32 and under bf16 autocast, and their peers, interleaved in one process.

    python -m benchmarks.training                           BERT-base teacher, DistilBERT student, 16 × 128 tokens, random weights
    python -m benchmarks.training --dropout 0               how near the step is to its bare matrix products
    python -m benchmarks.training --sequences 4 --length 512
    python -m benchmarks.training --size small --add trainer plain_loop --output benchmarks/results/training-cpu.json

All run the same objective: KL over all tokens, masked-LM, cosine, dropout 0.1, clipping, AdamW. Machines are noisy, so contenders take turns
and ratios are medians of ratios within a round. "gemms" are the step's matrix products alone, on its exact shapes, in the engine's precision
(gemm_floor_share: their time as a share of the engine's). A contender whose first step takes longer than --patience is not asked again:
that step is its measurement, and the output says so. The last line of standard output is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM
from transformers.utils import logging as transformers_logging

from benchmarks import contenders as who
from benchmarks.console import alive, end, timed
from benchmarks.floor import gemm_contender
from benchmarks.machine import describe, peak_bytes
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Training
from ds_distill.training.engine import device_of_rank, precision_of
from ds_distill.training.forecast import flops_a_token
from ds_distill.training.ranks import start_distributed

SIZES = {"tiny": (2, 128), "small": (6, 384), "base": (12, 768)}  # the teacher's layers and width; the student has half the layers


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


def seconds_of(step: Callable[[], float | None], device: torch.device) -> float:
    """What the step says it took, or what the clock says."""
    said: list[float | None] = []
    took = timed(lambda: said.append(step()), device)
    return said[0] or took


def ratio(theirs: list[float], mine: list[float]) -> float:
    """Median of the ratios within a round; a contender that was asked once is held against every round."""
    return statistics.median(a / b for a, b in zip(theirs * (len(mine) if len(theirs) == 1 else 1), mine, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs every contender once (default 5)")
    parser.add_argument("--sequences", type=int, default=16, help="sequences a step (default 16)")
    parser.add_argument("--length", type=int, default=128, help="tokens a sequence (default 128)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--size", choices=SIZES, default="base", help="teacher: tiny 2 × 128, small 6 × 384, base 12 × 768 (default)")
    parser.add_argument("--vocabulary", type=int, default=30_522, help="vocabulary (default 30522)")
    parser.add_argument("--dropout", type=float, default=0.1, help="hidden and attention dropout of every contender (default 0.1)")
    parser.add_argument("--zero", type=int, choices=range(4), help="the engine's ZeRO stage (default 1 in 16 bit, 0 in fp32)")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="the engine's; auto as in training")
    parser.add_argument("--skip", nargs="*", choices=["reference_fp32", "reference_bf16", "engine", "gemms"], default=[], help="leave these out")
    parser.add_argument("--add", nargs="*", choices=["trainer", "plain_loop"], default=[], help="transformers.Trainer; a loop without DeepSpeed")
    parser.add_argument("--patience", type=float, default=60, help="seconds a contender's first step may take to be asked again (default 60)")
    parser.add_argument("--profile", action="store_true", help="after the rounds, print where one engine step spends its time, by operator")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    args = parser.parse_args()

    transformers_logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    start_distributed()
    device = device_of_rank()
    layers, hidden = SIZES[args.size]
    config = BertConfig(vocab_size=args.vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
                        intermediate_size=4 * hidden, max_position_embeddings=max(512, args.length))  # fmt: skip
    bert = BertForMaskedLM(config).eval()
    student = lambda: build_student(bert, dropout=args.dropout).to(device).train()  # noqa: E731
    batch = random_batch(config, args.sequences, args.length, device)
    training = Training(global_batch=args.sequences, micro_batch=args.sequences, precision=args.precision)
    dtype = precision_of(training, device)
    stage = args.zero if args.zero is not None else int(dtype != torch.float32)  # DeepSpeed's stage 0 copies 16-bit gradients twice more
    training.deepspeed = f"ds_configs/deepspeed/zero{stage}.json"
    frozen = Teacher(BertForMaskedLM(config).to(device=device, dtype=torch.float16 if device.type == "cuda" else dtype))
    frozen.model.load_state_dict(bert.state_dict())
    plain = bert.to(device).requires_grad_(False)
    low = dtype != torch.float32
    made = {
        "reference_fp32": lambda: who.reference(plain, student(), training, batch, device, autocast=False),
        "reference_bf16": lambda: who.reference(plain, student(), training, batch, device, autocast=True),
        "trainer": lambda: who.trainer(plain, student(), training, batch, device, autocast=low),
        "plain_loop": lambda: who.plain_loop(frozen, student(), training, dtype, batch, device),
        "engine": lambda: who.engine(frozen, student(), training, dtype, batch, device),
        "gemms": lambda: gemm_contender(config, student().config, args.sequences, args.length, device, dtype),
    }
    left_out = {*args.skip, *({"trainer", "plain_loop"} - set(args.add))}
    contenders = {name: make() for name, make in made.items() if name not in left_out}

    memory, seconds, once = {}, {name: [] for name in contenders}, []
    for number in range(-1, args.repeats):
        for name, step in contenders.items():
            if name in once:
                continue
            with alive(f"{'warm-up' if number < 0 else f'round {number + 1} of {args.repeats}'}: {name}"):
                if number >= 0:
                    seconds[name].append(seconds_of(step, device))
                    continue
                began = time.perf_counter()
                memory[name] = peak_bytes(step, device)
                first = time.perf_counter() - began
                if first > args.patience:
                    once.append(name)
                    seconds[name] = [first]
                else:
                    memory[name] = peak_bytes(step, device)  # the first step also allocates the optimizer's state
    end()
    if args.profile and "engine" in contenders:
        print(profiled(contenders["engine"], device))

    tokens = args.sequences * args.length
    flops = flops_a_token(config, student().config, args.length)
    result = {name: round(tokens / statistics.median(times), 1) for name, times in seconds.items()}
    if "engine" in seconds:
        for name in seconds.keys() - {"engine", "gemms"}:
            result[f"engine_vs_{name}"] = round(ratio(seconds[name], seconds["engine"]), 3)
        if "gemms" in seconds:
            result["gemm_floor_share"] = round(ratio(seconds["gemms"], seconds["engine"]), 3)
    result |= {"engine_dtype": str(dtype).removeprefix("torch."), "mflops_a_token": round(flops / 1e6, 1), "dropout": args.dropout, "zero": stage}
    result["peak_mb_of_a_step"] = {name: round(size / 1e6) for name, size in memory.items()}
    result |= {"spread": {name: round(max(times) / min(times), 2) for name, times in seconds.items()}, "first_step_only": once,
               "rounds": args.repeats, "shape": [args.sequences, args.length], "size": args.size, "threads": args.threads,
               "machine": describe(device)}  # fmt: skip
    print(f"{tokens} tokens a step ({args.sequences} × {args.length}), teacher {layers} × {hidden}, dropout {args.dropout}, {flops / 1e6:.0f} MFLOP a "
          f"token, engine in {result['engine_dtype']} at ZeRO {stage}, {describe(device)}, {args.threads} threads\n")  # fmt: skip
    print("| contender | tokens/s | engine against it | peak memory of a step (MB) | slowest round ÷ fastest |\n|---|---|---|---|---|")
    for name in seconds:
        against = f"{100 * result['gemm_floor_share']:.0f} % of it" if name == "gemms" and "engine" in seconds else result.get(f"engine_vs_{name}", "")
        print(f"| {name}{' (its first step only)' if name in once else ''} | {result[name]:,} | {against} | {result['peak_mb_of_a_step'][name]:,} | "
              f"{result['spread'][name]} |")  # fmt: skip
    print()
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
