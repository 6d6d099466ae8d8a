"""Measure what feeding a step from the real loader costs: late launches, waiting, and the processor's time.

    python -m benchmarks.data.feeding
        the pace of one H100: 128 × 128 tokens every 32.5 ms, 1,500 launches per step

A GPU's step is launched by the host operator by operator, and takes its time on the GPU while the host waits. Here each
step launches as many operators on a tensor of one element, and then waits until the step's time is over, as the host
waits for a GPU. No GPU is used. The step's batches come from

    fixed      nowhere: one batch, made before
    thread     a thread of the same process
    process    a process of its own, as in training on a GPU

They take turns. A step's launches take longer where they have to wait for Python's interpreter lock; "late" is the time
by which a step's launches and its wait for a batch exceed those of the fixed batch. The batches are not pinned, which
needs a GPU. The last line of standard output is JSON.
"""

import argparse
import contextlib
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from benchmarks.data.synthetic import write_random
from benchmarks.harness.cli import amount, count, user_errors
from benchmarks.harness.machine import describe
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import BatchLoader
from ds_distill.data.masking import Masker
from ds_distill.reporting.tables import table
from ds_distill.utils.console import spinner

VOCABULARY = 30_522
WARM_UP = 5  # steps
KINDS = ("fixed", "thread", "process")
COLUMNS = {
    "kind": "batches from",
    "median": "launches, median (ms)",
    "p90": "p90 (ms)",
    "wait_median": "wait for a batch, median (ms)",
    "wait_p90": "p90 (ms) ",
    "late_share": "late, share of a step",
    "cores": "cores in use",
}


def open_loader(folder: Path, sequences: int, length: int, ranks: int, vocabulary: int) -> BatchLoader:
    """Make a prepared folder of random ids, of four global batches, and return the loader of one of so many ranks."""
    write_random(folder, 4 * sequences * ranks, length, vocabulary)
    store = TokenDataset.open(folder)
    manifest = store.manifest
    masker = Masker(store.token_counts, manifest["special_ids"], manifest["mask_id"], manifest["vocab_size"], seed=0)
    return BatchLoader(
        store,
        masker,
        seed=0,
        global_batch_size=sequences * ranks,
        micro_batch_size=sequences,
        rank=0,
        world_size=ranks,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data.feeding",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sequences", type=count, default=128, help="sequences per step (default 128)")
    parser.add_argument("--length", type=count, default=128, help="tokens per sequence (default 128)")
    parser.add_argument("--ranks", type=count, default=32, help="ranks that share a global batch (default 32)")
    parser.add_argument("--milliseconds", type=amount, default=32.5, help="time of a step (default 32.5)")
    parser.add_argument("--launches", type=count, default=1500, help="operators per step (default 1500)")
    parser.add_argument("--steps", type=count, default=60, help="steps per turn (default 60)")
    parser.add_argument("--rounds", type=count, default=5, help="turns of each (default 5)")
    args = parser.parse_args()
    with user_errors("benchmarks.data.feeding"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    turns: dict[str, list[dict]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        with spinner("making a prepared folder"):
            loader = open_loader(Path(folder, "tokens"), args.sequences, args.length, args.ranks, VOCABULARY)
        for number in range(args.rounds):
            for kind in KINDS:
                with spinner(f"round {number + 1} of {args.rounds}: {kind}"):
                    turns[kind].append(take_turn(loader, kind, args))
    figures = {kind: figures_of(turns[kind], args) for kind in KINDS}
    fixed = figures["fixed"]["busy"]
    rows = []
    for kind, row in figures.items():
        row["late_share"] = (row.pop("busy") - fixed) / (args.milliseconds / 1e3)
        rows.append({"kind": kind, **{key: f"{value:.2f}" for key, value in row.items()}})
        rows[-1]["late_share"] = f"{100 * row['late_share']:.0f} %"
    result = {"machine": describe(torch.device("cpu")), "date": datetime.date.today().isoformat()}
    print(
        f"{args.sequences} × {args.length} tokens and {args.launches} launches every {args.milliseconds} ms, "
        f"{args.rounds} × {args.steps} steps, {result['machine']}, {result['date']}\n\n{table(rows, COLUMNS)}\n"
    )
    print(json.dumps(figures | result | vars(args)))
    return 0


def take_turn(loader: BatchLoader, kind: str, args: argparse.Namespace) -> dict:
    """Take the steps of one turn; return each one's seconds of launching and waiting, and the cores in use."""
    steps = WARM_UP + args.steps
    if kind == "fixed":
        batches = loader.micro_batches(0)
        source = (batches for _ in range(steps))
    else:
        source = loader.prefetch(0, steps, process=kind == "process")
    launch_step = make_step(args.launches)
    launches, waits = [], []
    with contextlib.closing(source):
        due = time.perf_counter()
        for number in range(steps):
            if number == WARM_UP:
                began, used = time.perf_counter(), processor_seconds()
            asked = time.perf_counter()
            next(source)
            given = time.perf_counter()
            launch_step()
            done = time.perf_counter()
            waits.append(given - asked)
            launches.append(done - given)
            due = max(due + args.milliseconds / 1e3, done)
            time.sleep(due - done)
        cores = (processor_seconds() - used) / (time.perf_counter() - began)
    return {"launches": launches[WARM_UP:], "waits": waits[WARM_UP:], "cores": cores}


def make_step(launches: int) -> Callable[[], None]:
    """Return a function that launches so many operators."""
    value = torch.zeros(1)

    def step() -> None:
        for _ in range(launches):
            value.add_(1)

    return step


def processor_seconds() -> float:
    """Return the processor's time that this process and its children have used."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def figures_of(turns: list[dict], args: argparse.Namespace) -> dict[str, float]:
    """Return the figures over all steps of all turns, in milliseconds; `busy` is in seconds."""
    launches, waits = ([second for turn in turns for second in turn[key]] for key in ("launches", "waits"))
    return {
        "median": 1e3 * statistics.median(launches),
        "p90": 1e3 * statistics.quantiles(launches, n=10)[-1],
        "wait_median": 1e3 * statistics.median(waits),
        "wait_p90": 1e3 * statistics.quantiles(waits, n=10)[-1],
        "busy": statistics.mean(a + b for a, b in zip(launches, waits, strict=True)),
        "cores": statistics.mean(turn["cores"] for turn in turns),
    }


if __name__ == "__main__":
    raise SystemExit(main())
