"""Measure text preparation: megabytes per second and core against `datasets.map`, and memory as the corpus grows.

    python -m benchmarks.data.prepare --tokenizer DIR --text FILE…
        real English text, 20 MB or more
    python -m benchmarks.data.prepare --tokenizer DIR --text FILE… --sizes 10 100 1000

Speed: one worker prepares the text as it is. It is compared with datasets.map and a transformers
fast tokenizer, row by row (the default of datasets.map) and with batched=True (its default of 1,000
rows per call). All run on one core, in turns, and ratios are medians over rounds. Memory: the most
that one worker's process holds while it prepares corpora of the given sizes. These consist of
copies of the text in which every line has a word of its own. The last line of standard output is
JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness.cli import amount, count, user_errors, why_it_ended
from benchmarks.harness.machine import describe
from ds_distill.data.readers import documents
from ds_distill.reporting.tables import table
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError

PROBE = """
import json, sys, time
from pathlib import Path
from ds_distill.data.prepare import prepare
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.utils.memory import peak_resident
tokenizer = load_tokenizer(sys.argv[1])
began = time.perf_counter()
prepare([sys.argv[2]], tokenizer, Path(sys.argv[3]), sequence_length=128, heldout_fraction=0.02, seed=0, workers=1)
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "peak_mb": peak_resident() / 1e6}))
"""
MAP = """
import json, sys, time
import datasets
from transformers import AutoTokenizer
datasets.disable_progress_bars()
datasets.disable_caching()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
data = datasets.Dataset.from_dict({"text": json.load(open(sys.argv[2]))})
began = time.perf_counter()
data.map(lambda rows: tokenizer(rows["text"]), batched=sys.argv[3] == "batched")
print(json.dumps({"seconds": time.perf_counter() - began}))
"""
ROWS = {
    "prepare": "prepare, from file to packed shards",
    "datasets_map_row_by_row": "datasets.map, row by row",
    "datasets_map_batched": "datasets.map, batched=True, 1,000 rows per call",
}


def probe(program: str, *arguments) -> dict:
    """Run a program alone on one core and return the JSON that it prints last."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise UserError(why_it_ended(done.returncode, done.stderr))
    return json.loads(done.stdout.splitlines()[-1])


def grown(texts: list[str], megabytes: float, path: Path) -> None:
    """Write a text file of that size: copies of `texts` in which every line ends with a number of its own."""
    size, number = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            for text in texts:
                lines = []
                for line in text.split("\n"):
                    number += 1
                    lines.append(f"{line} {number}")
                size += file.write("\n".join(lines) + "\n\n")
                if size >= megabytes * 1e6:
                    return


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokenizer", required=True, help="folder with a fast tokenizer")
    parser.add_argument("--text", required=True, nargs="+", help="text files, folders or glob patterns")
    parser.add_argument("--rounds", type=count, default=3, help="rounds of the speed comparison (default 3)")
    parser.add_argument("--sizes", type=amount, nargs="*", default=[], help="corpus sizes in MB for the memory table")
    args = parser.parse_args()
    with user_errors("benchmarks.data.prepare"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    import torch

    texts = list(documents(args.text))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    if not megabytes:
        raise UserError(f"--text {' '.join(args.text)}: contains no text; give other files")
    result: dict = {"text_mb": megabytes, "machine": describe(torch.device("cpu"))}
    with tempfile.TemporaryDirectory() as folder:
        result |= speeds(args, texts, megabytes, Path(folder))
        rows = [
            {"who": label, "rate": f"{result[f'{name}_mb_per_second']:.3g}", "ratio": ratio and f"{ratio:.2f}×"}
            for name, label in ROWS.items()
            for ratio in [result.get(f"times_{name}")]
        ]
        print(
            f"{megabytes:.3g} MB, one core, {result['machine']}\n\n"
            f"{table(rows, {'who': '', 'rate': 'MB/s', 'ratio': 'speed of prepare ÷ this'})}\n"
        )
        if args.sizes:
            result["memory"] = []
            print("| corpus (MB) | MB/s | peak memory (MB) |\n|---|---|---|")
        for size in args.sizes:
            corpus = Path(folder, "grown.txt")
            with spinner(f"{size:g} MB"):
                grown(texts, size, corpus)
                measurement = probe(PROBE, args.tokenizer, corpus, Path(folder, f"out-{time.time_ns()}"))
            result["memory"].append(
                {
                    "corpus_mb": size,
                    "mb_per_second": round(size / measurement["seconds"], 2),
                    "peak_mb": round(measurement["peak_mb"]),
                }
            )
            print(f"| {size:g} | {size / measurement['seconds']:.2f} | {measurement['peak_mb']:.0f} |")
    print(json.dumps(result))
    return 0


def speeds(args: argparse.Namespace, texts: list[str], megabytes: float, folder: Path) -> dict:
    """Return the megabytes per second of each of ROWS, and how many times faster prepare is than each of the others."""
    plain, rows = folder / "plain.txt", folder / "rows.json"
    plain.write_text("\n\n".join(texts), encoding="utf-8")
    rows.write_text(json.dumps(texts), encoding="utf-8")
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    for number in range(args.rounds):
        for name in ROWS:
            words = (
                (PROBE, args.tokenizer, plain, folder / f"out-{time.time_ns()}")
                if name == "prepare"
                else (MAP, args.tokenizer, rows, name.removeprefix("datasets_map_"))
            )
            with spinner(f"round {number + 1} of {args.rounds}: {name}"):
                seconds[name].append(probe(*words)["seconds"])
    prepare_seconds = seconds["prepare"]
    ratios = {
        f"times_{name}": round(
            statistics.median(b / a for a, b in zip(prepare_seconds, baseline_seconds, strict=True)), 3
        )
        for name, baseline_seconds in seconds.items()
        if baseline_seconds is not prepare_seconds
    }
    return {f"{name}_mb_per_second": megabytes / statistics.median(values) for name, values in seconds.items()} | ratios


if __name__ == "__main__":
    raise SystemExit(main())
