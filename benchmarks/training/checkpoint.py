"""Measure for how long a checkpoint stops the training, and whether writing it disturbs kernel launches.

    python -m benchmarks.training.checkpoint --output DIR
        a DistilBERT with its optimizer's state, on one rank
    python -m benchmarks.training.checkpoint --output DIR --layers 2 --hidden 128

"in the training" serializes into files with torch.save, reads each again for its checksum and syncs
it, while the training waits, as a plain program would. "in the background" waits for the snapshot
alone, and its whole time goes to the rename. The two take turns, and ratios are medians of the ratios
within a round. Launches are 1,500 tiny operations as a step launches kernels, in ms: alone, while the
background writes, and while a thread serializes instead, which holds the GIL. The disk's cache and
other load decide the whole times. The last line of standard output is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from transformers import DistilBertConfig, DistilBertForMaskedLM

from benchmarks.harness.cli import count, make_folder, user_errors
from benchmarks.harness.machine import describe
from ds_distill.distributed.process_group import start_distributed
from ds_distill.recipe import Training
from ds_distill.training.checkpoint_writer import CheckpointWriter, MemoryFile
from ds_distill.training.device import local_device
from ds_distill.training.engine import Engine
from ds_distill.utils.console import spinner

OPERATIONS = 1500  # of a small model's step on a GPU


def make_engine(layers: int, hidden: int, device: torch.device) -> Engine:
    """Return an engine that has taken a step, so that its optimizer has its moments."""
    config = DistilBertConfig(n_layers=layers, dim=hidden, hidden_dim=4 * hidden, n_heads=max(1, hidden // 64))
    model = DistilBertForMaskedLM(config)
    settings = Training(global_batch_size=1, micro_batch_size=1, optimizer="torch")
    engine = Engine(model, settings, accumulation=1, total_steps=10, device=device, dtype=torch.float32)
    ids = torch.ones(1, 8, dtype=torch.long, device=device)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    return engine


def save_in_the_training(engine: Engine, folder: Path) -> float:
    """Save as a plain program does; return the seconds that the training waits."""
    began = time.perf_counter()
    background, engine.deepspeed.checkpoint_engine = (
        engine.deepspeed.checkpoint_engine,
        TorchCheckpointEngine(engine.deepspeed._config),
    )
    engine.deepspeed.save_checkpoint(str(folder / "plain"), tag="state", save_latest=False)
    for file in (folder / "plain" / "state").iterdir():
        with file.open("rb") as stream:
            zlib.crc32(stream.read())
            os.fsync(stream.fileno())
    engine.deepspeed.checkpoint_engine = background
    seconds = time.perf_counter() - began
    shutil.rmtree(folder / "plain")
    return seconds


def launches(device: torch.device, rounds: int) -> list[float]:
    """Return the milliseconds that launching a step's operations takes, sorted."""
    x, times = torch.zeros(4, 4, device=device), []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(OPERATIONS):
            x.add_(1)
        times.append(1000 * (time.perf_counter() - began))
    return sorted(times)


def beside(job: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Return `launches` while a thread repeats `job`."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.is_set():
            job()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        return launches(device, rounds)
    finally:
        ended.set()
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder on the disk to measure")
    parser.add_argument("--layers", type=count, default=6, help="layers of the model (default 6)")
    parser.add_argument("--hidden", type=count, default=768, help="hidden size of the model (default 768)")
    parser.add_argument("--repeats", type=count, default=5, help="rounds (default 5)")
    parser.add_argument("--launches", type=count, default=200, help="rounds of launches (default 200)")
    args = parser.parse_args()
    with user_errors("benchmarks.training.checkpoint"):
        make_folder("--output", args.output)
        with TemporaryDirectory(dir=args.output) as folder:
            return run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> int:
    warnings.simplefilter("ignore")  # DeepSpeed's, of no concern here
    start_distributed()
    device = local_device()
    engine = make_engine(args.layers, args.hidden, device)
    (folder / "checkpoints").mkdir()
    writer = CheckpointWriter(engine, folder / "checkpoints", keep=1)
    rows: list[dict[str, float]] = []
    size = 0
    for number in range(args.repeats + 1):
        with spinner(f"round {number} of {args.repeats}"):
            before = save_in_the_training(engine, folder)
            began = time.perf_counter()
            writer.begin(number, {})
            stop = time.perf_counter() - began
            saved = writer.wait()
        assert saved is not None
        size = saved.bytes
        if number:  # the first round fills caches
            rows.append({"in_the_training": before, "snapshot": stop, "whole": saved.seconds})
    state = engine.module.state_dict()
    content = b"\0" * (64 << 20)
    with spinner("launches"):
        jitter = {
            "alone": launches(device, args.launches),
            "beside writing": beside(lambda: MemoryFile(content).move_to(folder / "file"), device, args.launches),
            "beside serializing": beside(lambda: torch.save(state, folder / "file"), device, args.launches),
        }
    print(f"{describe(device)}; {size / 1e6:,.0f} MB")
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    ratio = statistics.median(row["snapshot"] / row["in_the_training"] for row in rows)
    print("| a checkpoint | the training waits (s) | whole time (s) |\n|---|---|---|")
    print(f"| in the training | {median['in_the_training']:.2f} | {median['in_the_training']:.2f} |")
    print(f"| in the background | {median['snapshot']:.2f} | {median['whole']:.2f} |")
    print(f"\nthe training waits {ratio:.2f} times as long\n")
    shown = {
        name: {"median": times[len(times) // 2], "p90": times[len(times) * 9 // 10], "most": times[-1]}
        for name, times in jitter.items()
    }
    print(f"| {OPERATIONS:,} launches (ms) | median | 90 % | most |\n|---|---|---|---|")
    for name, row in shown.items():
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in row.values())} |")
    print(json.dumps({"bytes": size, "seconds": median, "ratio": ratio, "launches_ms": shown}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
