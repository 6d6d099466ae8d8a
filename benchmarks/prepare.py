"""Preparing text: megabytes a second and core against `datasets.map`, and memory as the corpus grows.

    python -m benchmarks.prepare --tokenizer DIR --text FILE…               real English text, 20 MB or more
    python -m benchmarks.prepare --tokenizer DIR --text FILE… --sizes 10 100 1000

Speed: one worker on the text as it is, against datasets.map with a transformers fast tokenizer, both with default settings on one core, in turns;
the ratio is the median over rounds. Memory: the most that one worker's process holds while it prepares corpora of the given sizes, made of
copies of the text in which every line carries a word of its own. The last line of standard output is JSON.
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

from benchmarks.machine import describe
from ds_distill.data.sources import documents

PROBE = """
import json, resource, sys, time
from ds_distill.data.prepare import prepare
from ds_distill.data.tokenizer import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
manifest = prepare([sys.argv[2]], tokenizer, __import__("pathlib").Path(sys.argv[3]), sequence_length=128, heldout_fraction=0.02, seed=0, workers=1)
seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_mb": peak / 1000, "grown_mb": (peak - before) / 1000, "tokens": sum(manifest["real_tokens"].values())}))
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
data.map(lambda row: tokenizer(row["text"]))
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


def probe(program: str, *arguments) -> dict:
    """The JSON that a program prints, run alone on one core."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.prepare: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def grown(texts: list[str], megabytes: float, path: Path) -> None:
    """A text file of that size: copies of `texts`, every line with a number of its own."""
    size, number = 0, 0
    with path.open("w") as file:
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder with a fast tokenizer")
    parser.add_argument("--text", required=True, nargs="+", help="text files, folders, patterns")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed comparison (default 3)")
    parser.add_argument("--sizes", type=float, nargs="*", default=[], help="corpus sizes in MB for the memory table")
    args = parser.parse_args()
    import torch

    texts = list(documents(args.text))
    result: dict = {"text_mb": round(sum(len(text.encode()) for text in texts) / 1e6, 1), "machine": describe(torch.device("cpu"))}
    with tempfile.TemporaryDirectory() as folder:
        plain, rows = Path(folder, "plain.txt"), Path(folder, "rows.json")
        plain.write_text("\n\n".join(texts))
        rows.write_text(json.dumps(texts))
        speeds: dict[str, list[float]] = {"prepare": [], "datasets_map": []}
        for number in range(args.rounds):
            for name, program in (("prepare", PROBE), ("datasets_map", MAP)):
                print(f"\rround {number + 1} of {args.rounds}: {name:12}", end="", file=sys.stderr, flush=True)
                found = probe(program, args.tokenizer, plain if name == "prepare" else rows, Path(folder, f"out-{time.time_ns()}"))
                speeds[name].append(result["text_mb"] / found["seconds"])
        print(file=sys.stderr)
        result |= {f"{name}_mb_a_second": round(statistics.median(values), 2) for name, values in speeds.items()}
        result["times_datasets_map"] = round(statistics.median(a / b for a, b in zip(*speeds.values(), strict=True)), 2)
        print(f"{result['text_mb']} MB, one core, {result['machine']}\n\n| | MB/s |\n|---|---|")
        print(f"| prepare, from file to packed shards | {result['prepare_mb_a_second']} |\n| datasets.map | {result['datasets_map_mb_a_second']} |")
        print(f"\n{result['times_datasets_map']}× datasets.map\n")
        if args.sizes:
            result["memory"] = []
            print("| corpus (MB) | MB/s | most memory held (MB) |\n|---|---|---|")
        for size in args.sizes:
            print(f"\r{size:g} MB …", end="", file=sys.stderr, flush=True)
            corpus = Path(folder, "grown.txt")
            grown(texts, size, corpus)
            found = probe(PROBE, args.tokenizer, corpus, Path(folder, f"out-{time.time_ns()}"))
            result["memory"].append({"corpus_mb": size, "mb_a_second": round(size / found["seconds"], 2), "peak_mb": round(found["peak_mb"])})
            print(f"| {size:g} | {size / found['seconds']:.2f} | {found['peak_mb']:.0f} |")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
