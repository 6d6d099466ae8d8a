"""Measure what packing gains on a corpus, compared with the gain expected from the share of padding.

    python -m benchmarks.training.packing --teacher DIR --corpus FILE… [--length 512]

One student of the teacher learns from three kinds of batches in turn. All three run on torch's own
operators, so that only the batches differ:

    padded     each line is a sequence, lines come in random order, and a batch is as wide as its
               longest line
    grouped    lines of similar length share a batch, as in the authors' data
    packed     documents fill whole blocks; a step has as many blocks as hold the same number of
               real tokens

The output gives real tokens per second and these gains over padded batches. The expected gain is
what a step would gain if its cost were the number of positions (padded positions ÷ real tokens). In
the JSON it is called "promised", and the measured gain ÷ the expected gain "kept". The last line of
standard output is JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.harness.cli import count, user_errors
from benchmarks.harness.machine import describe, on_cpu_only
from benchmarks.training.trainers import Engine
from ds_distill.cli.app import silence_libraries
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import BatchLoader
from ds_distill.data.run_data import make_masker, prepare_tokens
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.distributed.process_group import start_distributed
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import build_student
from ds_distill.recipe import Data, Recipe, Training
from ds_distill.reporting.tables import table
from ds_distill.utils.console import spinner


def orders(args: argparse.Namespace, folder: Path) -> dict[str, BatchLoader]:
    """Return the corpus's batches by name: padded, grouped and packed."""
    loaders, mean = {}, args.length  # real tokens per line
    for mode, kinds in {"lines": {"padded": False, "grouped": True}, "packed": {"packed": False}}.items():
        recipe = Recipe(data=Data(mode=mode, sequence_length=args.length))
        prepare_tokens(args.corpus, load_tokenizer(args.teacher), folder / mode, recipe)
        store = TokenDataset.open(folder / mode, "train")
        if mode == "lines":
            mean = store.manifest["real_tokens"]["train"] / store.manifest["blocks"]["train"]
        sequences = args.sequences if mode == "lines" else max(1, round(args.sequences * mean / args.length))
        for name, by_length in kinds.items():
            loaders[name] = BatchLoader(
                store,
                make_masker(store, recipe),
                seed=0,
                global_batch_size=sequences,
                micro_batch_size=sequences,
                rank=0,
                world_size=1,
                by_length=by_length,
            )
    return loaders


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.packing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--teacher", required=True, help="folder of a masked-LM model with its tokenizer")
    parser.add_argument("--corpus", nargs="+", required=True, help="text, as for ds-distill prepare")
    parser.add_argument(
        "--length", type=count, default=512, help="maximum tokens per sequence (default 512, as in the authors' code)"
    )
    parser.add_argument("--sequences", type=count, default=32, help="lines per step (default 32)")
    parser.add_argument(
        "--steps", type=count, default=16, help="steps per kind of batches, after two warm-up steps (default 16)"
    )
    args = parser.parse_args()
    with user_errors("benchmarks.training.packing"):
        result = measure(args)
    rows = [{"batches": name, **row} for name, row in result["batches"].items()]
    print(f"At most {args.length} tokens per sequence, {args.sequences} lines per step, {result['machine']}\n")
    print(
        table(
            rows,
            {
                "batches": "batches",
                "padding": "padding",
                "tokens_per_second": "real tokens/s",
                "promised": "expected gain",
                "gain": "measured gain",
                "kept": "measured ÷ expected",
            },
        )
        + "\n"
    )
    print(json.dumps(result))
    return 0


def measure(args: argparse.Namespace) -> dict:
    """Run the steps of all three kinds of batches in turns; return their rates and gains."""
    silence_libraries(False)
    on_cpu_only()
    start_distributed()
    teacher = load_masked_lm(args.teacher)
    recipe = Recipe(
        training=Training(global_batch_size=args.sequences, micro_batch_size=args.sequences, compile="off"),
        data=Data(sequence_length=args.length),
    )
    with tempfile.TemporaryDirectory() as folder:
        kinds = orders(args, Path(folder))
        engine = Engine(teacher, build_student(teacher), recipe, steps=10**6, share=lambda: 0.5)
        spent = dict.fromkeys(kinds, (0.0, 0, 0))  # seconds, real tokens, positions
        batches = {name: order.prefetch(0, args.steps + 2) for name, order in kinds.items()}
        for number in range(args.steps + 2):
            for name, ahead in batches.items():
                _, parts, counts = next(ahead)
                with spinner(f"step {number + 1} of {args.steps + 2}: {name}"):
                    began = time.perf_counter()
                    engine.step(parts, counts)
                    took = time.perf_counter() - began
                if number >= 2:
                    seconds, real, positions = spent[name]
                    spent[name] = (
                        seconds + took,
                        real + counts[0],
                        positions + sum(part.input_ids.numel() for part in parts),
                    )
        for ahead in batches.values():
            ahead.close()
    rates = {name: real / seconds for name, (seconds, real, _) in spent.items()}
    padding = {name: 1 - real / positions for name, (_, real, positions) in spent.items()}
    rows = {}
    for name in kinds:
        promised, gain = (1 - padding[name]) / (1 - padding["padded"]), rates[name] / rates["padded"]
        rows[name] = {
            "padding": f"{100 * padding[name]:.1f} %",
            "tokens_per_second": round(rates[name], 1),
            "promised": round(promised, 3),
            "gain": round(gain, 3),
            "kept": round(gain / promised, 3),
        }
    return {
        "batches": rows,
        "length": args.length,
        "sequences": args.sequences,
        "steps": args.steps,
        "machine": describe(torch.device("cpu")),
    }


if __name__ == "__main__":
    raise SystemExit(main())
