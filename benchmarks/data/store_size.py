"""Measure what opening and reading prepared tokens takes as the corpus grows, from 1 GB to 1 TB of text.

    python -m benchmarks.data.store_size
    python -m benchmarks.data.store_size --sizes 1 100 --length 128 --folder /data/scratch

For each size a folder is made and then read by a process of its own, which is one rank of 64. The files of token ids
are holes, which take no room on the disk, and reading them takes no time of a disk. The rows and lengths of all
sequences are written in full, 16 bytes per sequence, and dropped from the page cache: 7 GB for 1 TB of text in
sequences of 512 tokens. Text has 4.5 characters per token.

"packed" is the order of full blocks, and "lines" that of sequences which are sorted by length in windows of 64 steps.
The first step of each includes reading what it needs of rows and lengths from the disk; "later" is the median of the
steps 1 to 10. The last line of standard output is JSON.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.data.synthetic import write_sparse
from benchmarks.harness.cli import amount, count, user_errors, why_it_ended
from benchmarks.harness.machine import describe
from ds_distill.reporting.tables import table
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError

CHARACTERS_PER_TOKEN = 4.5
VOCABULARY = 30_522
PROBE = """
import json, os, statistics, sys, time
import numpy as np
from pathlib import Path
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import BatchLoader
from ds_distill.data.masking import Masker

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024 / 1e6

folder, batch = sys.argv[1], int(sys.argv[2])
before = memory("RssAnon")
began = time.perf_counter()
store = TokenDataset.open(folder)
manifest, counts = store.manifest, store.token_counts
masker = Masker(counts, manifest["special_ids"], manifest["mask_id"], len(counts), 0)
sizes = dict(seed=0, global_batch_size=batch, micro_batch_size=8, rank=0, world_size=64)
loaders = {name: BatchLoader(store, masker, **sizes, by_length=name == "lines") for name in ("packed", "lines")}
result = {"sequences": len(store), "open_ms": 1e3 * (time.perf_counter() - began)}
for name, loader in loaders.items():
    seconds = []
    for step in range(11):
        began = time.perf_counter()
        loader.micro_arrays(step)
        loader.counts(step)
        seconds.append(time.perf_counter() - began)
    result |= {f"{name}_first_ms": 1e3 * seconds[0], f"{name}_later_ms": 1e3 * statistics.median(seconds[1:])}
maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if f" {Path(folder).resolve()}/" in line]
result |= {"anonymous_mb": memory("RssAnon") - before, "files": len(os.listdir("/proc/self/fd")), "maps": len(maps)}
print(json.dumps(result))
"""
COLUMNS = {
    "text": "text (GB)",
    "sequences": "sequences",
    "open_ms": "open (ms)",
    "packed_first_ms": "packed: first step (ms)",
    "packed_later_ms": "later (ms)",
    "lines_first_ms": "lines: first step (ms)",
    "lines_later_ms": "later (ms) ",
    "anonymous_mb": "memory (MB)",
    "files": "open files",
    "maps": "maps",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data.store_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", type=amount, nargs="+", default=[1, 100, 1000], help="sizes of text in GB (default 1 100 1000)"
    )
    parser.add_argument("--length", type=count, default=512, help="tokens per sequence (default 512)")
    parser.add_argument("--batch", type=count, default=4096, help="sequences per global batch (default 4096)")
    parser.add_argument(
        "--folder", type=Path, help="folder to make the folders in (default the one for temporary files)"
    )
    args = parser.parse_args()
    with user_errors("benchmarks.data.store_size"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    rows = [measure(args, size) for size in args.sizes]
    machine, day = describe(torch.device("cpu")), datetime.date.today().isoformat()
    shown = [
        {key: row[key] if isinstance(row[key], str) else f"{row[key]:,.1f}".removesuffix(".0") for key in COLUMNS}
        for row in rows
    ]
    title = f"Sequences of {args.length} tokens, global batches of {args.batch}, one rank of 64, {machine}, {day}"
    print(f"{title}\n\n{table(shown, COLUMNS)}\n")
    print(json.dumps({"sizes": rows, "length": args.length, "batch": args.batch, "machine": machine, "date": day}))
    return 0


def measure(args: argparse.Namespace, gigabytes: float) -> dict:
    """Make a folder for that much text, and return what its reader reports."""
    with tempfile.TemporaryDirectory(dir=args.folder) as parent:
        folder = Path(parent, "tokens")
        with spinner(f"{gigabytes:g} GB of text: writing"):
            write_sparse(folder, int(gigabytes * 1e9 / CHARACTERS_PER_TOKEN), args.length, VOCABULARY)
            for file in folder.iterdir():
                drop_from_cache(file)
        with spinner(f"{gigabytes:g} GB of text: reading"):
            done = subprocess.run(
                [sys.executable, "-c", PROBE, str(folder), str(args.batch)],
                capture_output=True,
                encoding="utf-8",
                check=False,
            )
    if done.returncode:
        raise UserError(f"{gigabytes:g} GB of text: {why_it_ended(done.returncode, done.stderr)}")
    return {"text": gigabytes} | json.loads(done.stdout.splitlines()[-1])


def drop_from_cache(file: Path) -> None:
    """Have the kernel forget what it keeps of a file in memory."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    raise SystemExit(main())
