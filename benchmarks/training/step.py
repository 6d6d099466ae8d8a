"""Measure training throughput: the engine's step against its peers and against its own matrix products.

    python -m benchmarks.training.step
        BERT-base teacher, DistilBERT student, 16 × 128 tokens, random weights
    python -m benchmarks.training.step --dropout 0
        shows how near the step is to its GEMM bound
    python -m benchmarks.training.step --sequences 4 --length 512
    python -m benchmarks.training.step --add trainer plain_loop reference_fp32_huge_pages
        needs 24 GB of memory

Each variant runs in a process of its own. Machines are noisy, so variants take turns, and
ratios are medians of the ratios within a round.

All variants train on the same objective, with the same dropout, clipping and AdamW: KL, masked-LM
and cosine. The KL covers all tokens. With --objective masked it covers the masked tokens only,
which is another objective and labeled so.

    reference, Trainer       the reference implementation and transformers.Trainer, as their users
                             start them: without TF32, with an fp32 teacher
    huge pages               the same with the best allocator settings that a user could choose
                             (THP_MEM_ALLOC_ENABLE, and keeping all freed memory; CPU only); "gemms"
                             has huge pages too
    engine, fed              the engine on batches that the loader of one rank makes meanwhile, of a
                             global batch of 4,096 sequences, instead of on a fixed batch
    gemms                    the matrix products of the step alone, on its exact shapes, in the
                             engine's precision; gemm_bound_fraction is their time as a share of the
                             engine's

A variant whose first step takes longer than --patience runs no further step: that step is its
measurement, and the output says so. first_step_extra_s is the time by which the engine's first step
exceeds the others; it includes compiling, or reading what was compiled before. The last line of
standard output is JSON.
"""

import argparse
import datetime
import json
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.harness.cli import count, make_folder, user_errors
from benchmarks.harness.interleave import Variant, ratio, run_interleaved
from benchmarks.harness.machine import describe
from benchmarks.training import baselines
from ds_distill.estimate.flops import flops_per_token
from ds_distill.reporting.plots import bars_plot
from ds_distill.reporting.tables import table
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_json

SMALL_PAGES, HUGE_PAGES = ({"THP_MEM_ALLOC_ENABLE": value} for value in "01")
# Each value is (label, maker, environment).
ROWS = {
    "reference_fp32": ("reference implementation, fp32", baselines.reference_fp32, SMALL_PAGES),
    "reference_bf16": ("reference implementation, bf16 autocast", baselines.reference_bf16, SMALL_PAGES),
    "trainer": ("transformers.Trainer, triple loss in compute_loss", baselines.trainer, SMALL_PAGES),
    "reference_fp32_huge_pages": ("reference implementation, fp32, huge pages", baselines.reference_fp32, HUGE_PAGES),
    "reference_bf16_huge_pages": (
        "reference implementation, bf16 autocast, huge pages",
        baselines.reference_bf16,
        HUGE_PAGES,
    ),
    "plain_loop": ("the engine's module in a plain PyTorch loop", baselines.plain_loop, SMALL_PAGES),
    "engine": ("engine", baselines.engine, SMALL_PAGES),
    "engine_fed": ("engine, fed by the loader's process", baselines.engine_fed, SMALL_PAGES),
    "engine_fed_by_thread": ("engine, fed by the loader's thread", baselines.engine_fed_by_thread, SMALL_PAGES),
    "gemms": ("the step's matrix products alone", baselines.gemms, HUGE_PAGES),
}

FED = ("engine_fed", "engine_fed_by_thread")
COMPILING = ("plain_loop", "engine", *FED, "gemms")  # their first step does not predict the later ones
OPTIONAL = ("trainer", "reference_fp32_huge_pages", "plain_loop", *FED)  # each holds gigabytes while the others work


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a Setting."""
    parser.add_argument("--sequences", type=count, default=16, help="sequences per step (default 16)")
    parser.add_argument("--length", type=count, default=128, help="tokens per sequence (default 128)")
    parser.add_argument("--threads", type=count, default=2, help="CPU threads (default 2)")
    parser.add_argument(
        "--size",
        choices=baselines.SIZES,
        default="base",
        help="size of the teacher, layers × hidden size: tiny 2 × 128, small 6 × 384, base 12 × 768 (default)",
    )
    parser.add_argument("--vocabulary", type=count, default=30_522, help="vocabulary size (default 30522)")
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="hidden and attention dropout of every variant (default 0.1)"
    )
    parser.add_argument(
        "--objective",
        choices=["all", "masked"],
        default="all",
        help="tokens in the KL term (default all); masked is a different objective",
    )
    parser.add_argument(
        "--zero", type=int, choices=range(4), help="ZeRO stage of the engine (default 1 in 16 bit, 0 in fp32)"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="precision of the engine (default auto, as in training)",
    )
    parser.add_argument(
        "--backend",
        choices=["auto", "compiled", "triton", "torch"],
        default="auto",
        help="kernel of the vocabulary loss (default auto, as in training); torch compiles nothing at all",
    )


def build_setting(args: argparse.Namespace) -> baselines.Setting:
    """Return the Setting that the options describe."""
    return baselines.Setting(**{name: getattr(args, name) for name in baselines.Setting.__dataclass_fields__})


def check(setting: baselines.Setting, device: torch.device) -> None:
    """Raise a UserError for a setting with which the variants' processes could only fail."""
    if setting.vocabulary <= 1000:
        raise UserError(
            f"--vocabulary {setting.vocabulary}: must be more than 1000, because the tokens are drawn from id 1000 on"
        )
    if setting.precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16: this machine has no GPU; use bf16, fp32 or auto")


def measured(variants: list[Variant], setting: baselines.Setting, ranks: int) -> dict:
    """Return the figures of variants that took their turns; the engine's step covers `ranks` times the tokens."""
    tokens = setting.sequences * setting.length
    seconds = {
        variant.name: [s / (ranks if variant.name == "engine" else 1) for s in variant.seconds] for variant in variants
    }
    result = {name: round(tokens / statistics.median(times), 1) for name, times in seconds.items()}
    engine = next((variant for variant in variants if variant.name == "engine"), None)
    if engine:
        for name in seconds.keys() - {"engine", "gemms"}:
            result[f"engine_vs_{name}"] = round(ratio(seconds[name], seconds["engine"]), 3)
        if "gemms" in seconds and ranks == 1:
            result["gemm_bound_fraction"] = round(ratio(seconds["gemms"], seconds["engine"]), 3)
        result |= {
            "engine_dtype": engine.description["dtype"],
            "zero": engine.description["zero"],
            "first_step_extra_s": round(engine.first - statistics.median(engine.seconds), 1),
        }
    result["peak_mb"] = {variant.name: round(variant.memory / 1e6) for variant in variants}
    result["spread"] = {name: round(max(times) / min(times), 2) for name, times in seconds.items()}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_setting(parser)
    parser.add_argument("--repeats", type=count, default=5, help="rounds; each runs every variant once (default 5)")
    parser.add_argument(
        "--add", nargs="*", choices=OPTIONAL, default=[], help=f"variants to add: {', '.join(OPTIONAL)}"
    )
    parser.add_argument("--only", nargs="*", choices=ROWS, default=[], help="measure only these variants")
    parser.add_argument(
        "--patience",
        type=float,
        default=60,
        help="a variant whose first step takes more than this many seconds runs only one step (default 60)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="after the rounds, print where one engine step spends its time, by operator",
    )
    parser.add_argument(
        "--ranks",
        type=count,
        default=1,
        help="ranks of the engine's job, each with --sequences and --threads of its own (default 1)",
    )
    parser.add_argument("--report", type=Path, help="folder for training.md, training.png and training.json")
    args = parser.parse_args()
    with user_errors("benchmarks.training.step"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    setting, device = build_setting(args), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check(setting, device)
    make_folder("--report", args.report)
    chosen = set(args.only) or ROWS.keys() - set(OPTIONAL) | set(args.add)
    if device.type == "cuda":
        chosen = {name for name in chosen if "huge" not in name}
    variants = [
        Variant(name, make, setting, ranks=args.ranks if name == "engine" else 1, environment=environment)
        for name, (_, make, environment) in ROWS.items()
        if name in chosen
    ]
    profile = None
    try:
        run_interleaved(variants, args.repeats, args.patience, COMPILING)
        if args.profile and (engine := next((variant for variant in variants if variant.name == "engine"), None)):
            try:
                profile = engine.ask("profile")
            except RuntimeError as error:  # the figures must survive a profiler that does not work here
                print(f"no profile: {error}", file=sys.stderr)
    finally:
        for variant in variants:
            variant.stop()

    once = [variant.name for variant in variants if variant.once]
    teacher, student = (model.config for model in setting.models(torch.device("cpu")))
    flops = flops_per_token(teacher, student, setting.length)
    result = measured(variants, setting, args.ranks) | {
        "mflops_per_token": round(flops / 1e6, 1),
        "first_step_only": once,
        "rounds": args.repeats,
    }
    result |= {key: value for key, value in vars(setting).items() if key not in ("precision", "zero")} | {
        "ranks": args.ranks
    }
    result |= {"machine": describe(device), "date": datetime.date.today().isoformat()}
    if profile:
        print(profile)
    title, text = heading(result), table(make_rows(variants, result), COLUMNS)
    print(f"{title}\n\n{text}\n")
    print(json.dumps(result), flush=True)
    if args.report:
        words = " ".join(word for word in sys.argv[1:] if word not in ("--report", str(args.report)))
        page = (
            f"# Training throughput, {result['date']}\n\n{title}\n\n"
            f"`python -m benchmarks.training.step {words}`, medians of {args.repeats} rounds\n\n"
        )
        (args.report / "training.md").write_text(
            page + f"{text}\n\n![tokens per second](training.png)\n", encoding="utf-8"
        )
        write_json(args.report / "training.json", result)
        bars_plot(
            {ROWS[variant.name][0]: result[variant.name] for variant in variants},
            "tokens per second",
            args.report / "training.png",
            marked=(ROWS["engine"][0],),
        )
    return 0


COLUMNS = {
    "variant": "variant",
    "rate": "tokens/s",
    "against": "speed of the engine ÷ this",
    "memory": "peak memory, including models (MB)",
    "spread": "slowest round ÷ fastest",
}


def heading(result: dict) -> str:
    """Return a sentence that describes the measurement."""
    layers, hidden = baselines.SIZES[result["size"]]
    kl = "all tokens" if result["objective"] == "all" else "MASKED TOKENS ONLY (a different objective)"
    sequences, length, threads = (result[key] for key in ("sequences", "length", "threads"))
    engine = (
        f"engine in {result['engine_dtype']} at ZeRO {result['zero']}, {result['ranks']} rank(s), "
        if "zero" in result
        else ""
    )
    return (
        f"{sequences * length} tokens per step ({sequences} × {length}), teacher {layers} × {hidden}, "
        f"dropout {result['dropout']}, KL over {kl}, {result['mflops_per_token']:.0f} MFLOP per token, "
        f"{engine}{result['machine']}, {threads} threads"
    )


def make_rows(variants: list[Variant], result: dict) -> list[dict]:
    """Return one row of the table per variant."""
    rows = []
    for variant in variants:
        against = result.get(f"engine_vs_{variant.name}")
        if variant.name == "gemms" and "gemm_bound_fraction" in result:
            against = f"{100 * result['gemm_bound_fraction']:.0f} %"
        label = ROWS[variant.name][0] + (" (first step only)" if variant.name in result["first_step_only"] else "")
        rows.append(
            {
                "variant": label,
                "rate": f"{result[variant.name]:,.1f}",
                "against": against,
                "memory": result["peak_mb"][variant.name],
                "spread": f"{result['spread'][variant.name]:.2f}",
            }
        )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
