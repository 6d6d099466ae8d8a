"""Measure how long commands take to start: `--help`, `evaluate`, and `distill` up to its bar and to its end.

    python -m benchmarks.startup
    python -m benchmarks.startup --against DIR
        also the commands of another checkout of this repository, in turns; ratios are DIR's times by this one's

Every command is a process of its own, as a user starts it, on a teacher, a text and steps so small
that little but the start is measured. The processor's seconds count all threads and processes of a
command, user and system. They depend on the machine's other load far less than the time that
passes. Rounds are interleaved, caches are warm after a first round that does not count, and the
table has medians. The last line of standard output is JSON.
"""

import argparse
import json
import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.harness.cli import count, user_errors, why_it_ended
from ds_distill.reporting.tables import table
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError

HERE = Path(__file__).parents[1]
# The bar of the steps, which is there before the first one; the bars of earlier versions say how many percent are done.
BAR = re.compile(rb"distill: \d+/\d+ steps|distill[^\r\n]*\d%")
WORDS = "the student reads what the teacher has read and says what it would have said of every word in it".split()
TIMES = ("help", "evaluate", "distill to its bar", "distill")


def make_inputs(folder: Path) -> tuple[str, str]:
    """Write a tiny BERT and a text to `folder`; return their paths."""
    from transformers import BertConfig, BertForMaskedLM

    from ds_distill.data.tokenizer import train_wordpiece

    lines = [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(20)) for i in range(600)]
    text, teacher = folder / "text.txt", folder / "teacher"
    text.write_text("\n".join(lines), encoding="utf-8")
    size = len(train_wordpiece(lines, 200, teacher))
    config = BertConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(teacher)
    return str(teacher), str(text)


def measure(checkout: Path, arguments: list[str], bar: re.Pattern[bytes] | None = None) -> Iterator[dict[str, float]]:
    """Run a command at a terminal; yield its seconds when `bar` is shown, if given, and at its end.

    Raises:
        UserError: The command failed, or ended without the bar.
    """
    terminal, screen = pty.openpty()
    termios.tcsetwinsize(screen, (24, 100))  # a new one has no width, so bars are empty
    # with it no cache would ever be warm
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "ds_distill", *arguments],
        cwd=checkout,
        env=environment | {"PYTHONPATH": str(checkout), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=screen,
    ) as command:
        os.close(screen)
        shown, at_bar = bytearray(), {}

        def read() -> None:
            try:
                while piece := os.read(terminal, 65536):
                    shown.extend(piece)
                    if bar and not at_bar and bar.search(shown):
                        at_bar.update(seconds=time.perf_counter() - began, processor=_processor_seconds(command.pid))
            except OSError:  # how a terminal says that its last process has ended
                pass

        reader = threading.Thread(target=read)
        reader.start()
        _, status, usage = os.wait4(command.pid, 0)
        seconds = time.perf_counter() - began
        command.returncode = os.waitstatus_to_exitcode(status)
        reader.join()
        os.close(terminal)
    if command.returncode or (bar and not at_bar):
        raise UserError(
            f"{checkout}: {arguments[0]}: {why_it_ended(command.returncode, shown.decode(errors='replace'))}"
        )
    if at_bar:
        yield at_bar
    yield {"seconds": seconds, "processor": usage.ru_utime + usage.ru_stime}


def _processor_seconds(pid: int) -> float:
    """Return the user's and the system's seconds of a process and of all that it has started."""
    process = psutil.Process(pid)
    own = process.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in process.children(recursive=True):
        times = child.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def run_round(checkout: Path, teacher: str, text: str) -> dict[str, dict[str, float]]:
    """Return the seconds of each of TIMES, once."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        shape = ["--data.sequence_length", "32"]
        batch = ["--training.global_batch_size", "8", "--training.micro_batch_size", "8"]
        tokens = ["--training.max_tokens", "512"]
        (found,) = measure(checkout, ["--help"])
        result = {"help": found}
        distill = ["distill", "--teacher", teacher, "--corpus", text, "--output", str(output), *shape, *batch, *tokens]
        result["distill to its bar"], result["distill"] = measure(checkout, distill, BAR)
        (result["evaluate"],) = measure(checkout, ["evaluate", "--model", teacher, "--corpus", text, *shape])
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=count, default=3, help="counted rounds (default: 3)")
    options = parser.parse_args()
    checkouts = {"here": HERE}
    if options.against:
        if not (options.against / "ds_distill" / "__main__.py").exists():
            raise UserError(f"--against {options.against}: no checkout of this repository")
        checkouts["against"] = options.against.resolve()
    rounds: dict[str, list[dict]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        teacher, text = make_inputs(Path(folder))
        for number in range(options.rounds + 1):
            for name, checkout in checkouts.items():
                with spinner(f"round {number} of {options.rounds}: {checkout}"):
                    found = run_round(checkout, teacher, text)
                if number:
                    rounds[name].append(found)
    medians = {
        name: {
            what: {kind: statistics.median(one[what][kind] for one in found) for kind in ("processor", "seconds")}
            for what in TIMES
        }
        for name, found in rounds.items()
    }
    print(_table(medians))
    print(json.dumps({"rounds": options.rounds, "medians": medians}))


def _table(medians: dict[str, dict]) -> str:
    here, against = medians["here"], medians.get("against")
    columns = {"command": "command", "processor": "processor's seconds", "seconds": "seconds"}
    if against:
        columns |= {
            "their_processor": "processor's seconds there",
            "their_seconds": "seconds there",
            "ratio": "there ÷ here",
        }
    rows = []
    for what in TIMES:
        row = {"command": what, **here[what]}
        if against:
            there = against[what]
            row |= {"their_processor": there["processor"], "their_seconds": there["seconds"]}
            row["ratio"] = there["processor"] / here[what]["processor"]
        rows.append(row)
    return table(rows, columns)


if __name__ == "__main__":
    with user_errors("benchmarks.startup"):
        main()
