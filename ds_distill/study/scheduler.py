"""A study's steps, each in a process of its own, as many at a time as asked, begun when what they start from is there and ended together."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ds_distill.utils.console import log, on_terminal, progress
from ds_distill.utils.devices import visible_gpus
from ds_distill.utils.errors import UserError

TAIL = 4  # lines of a failed step's log_file that are said
LATE = 10.0  # seconds


@dataclass(frozen=True)
class Step:
    """One command of a study, done when its `output` has a summary, of as many seeds where it has any. after: folders that have to have theirs first.
    starter: what runs it in place of this process's Python; such a step takes the whole machine, or several, and runs alone."""

    what: str
    output: Path
    words: tuple[str, ...]
    after: tuple[Path, ...] = ()
    model: str | Path | None = None
    teacher: Path | None = None
    starter: str = ""
    seeds: int = 0

    @property
    def done(self) -> bool:
        file = self.output / "summary.json"
        return file.is_file() and (
            not self.seeds or len(json.loads(file.read_text(encoding="utf-8"))["seeds"]) >= self.seeds
        )

    @property
    def needs(self) -> list[Path]:
        return [*self.after, *(folder for folder in (self.model, self.teacher) if isinstance(folder, Path))]

    @property
    def ready(self) -> bool:
        return all((folder / "summary.json").is_file() for folder in self.needs)

    def command(self) -> list[str]:
        """As it is typed; what earlier steps made is looked up now."""
        own = ["--model", str(_made(self.model))] if self.model else []
        return [
            *self.words,
            *own,
            *(["--teacher", str(_made(self.teacher))] if self.teacher else []),
            "--output",
            str(self.output),
        ]

    def started_as(self) -> list[str]:
        words = self.command()
        # launch.sh has no command but distill
        return (
            [*starter_words(self.starter), *words[1:]] if self.starter else [sys.executable, "-m", "ds_distill", *words]
        )


def _made(where: str | Path) -> str | Path:
    """The model that a step made: in its folder as that is called now, not as it was called from wherever the step was started."""
    if not isinstance(where, Path):
        return where
    made = json.loads((where / "summary.json").read_text(encoding="utf-8"))
    return where / (os.path.relpath(made["export"], made["output"]) if "output" in made else "export")


def starter_words(starter: str) -> list[str]:
    """The words of a command that distillations are started with, ~ for what it stands for. ValueError for an open quote."""
    return [os.path.expanduser(word) for word in shlex.split(starter)]


def folder_of(name: str) -> str:
    """A name as that of a folder, which leads nowhere else."""
    return re.sub(r"[^\w.-]+|^\.+$", "_", name)


def run_steps(steps: list[Step], jobs: int, logs: Path) -> None:
    """Do all that is not done. One at a time they write to the terminal; side by side each to a file in `logs`, with its share of the cores and, on
    a machine with GPUs, one of these, in turn.

    UserError where a step fails or SIGTERM comes, KeyboardInterrupt at Ctrl-C. What runs is then ended and waited for: a distillation saves first,
    others go on from what they keep.
    """
    waiting = [step for step in steps if not step.done]
    jobs, running = max(1, min(jobs, len(waiting))), dict[int, tuple[Step, subprocess.Popen]]()  # by slot
    with _asked_to_end() as asked, progress(len(steps), "study", "step", initial=len(steps) - len(waiting)) as bar:
        try:
            while waiting or running:
                _start_more(running, waiting, jobs, logs)
                bar.set_postfix_str(", ".join(step.what for step, _ in running.values()))
                shown = time.monotonic()
                while not asked and all(process.poll() is None for _, process in running.values()):
                    time.sleep(0.1)
                    if jobs > 1 and on_terminal() and time.monotonic() - shown > 2:
                        bar.refresh()
                        shown = time.monotonic()
                if signal.SIGINT in asked:
                    raise KeyboardInterrupt
                if asked:
                    raise UserError("study: ended by SIGTERM; the same command goes on from there")
                for slot, (step, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        _check(step, process.returncode, _log_of(step, logs) if jobs > 1 else None)
                        bar.update()
        except BaseException:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
            raise


@contextlib.contextmanager
def _asked_to_end():
    """A list that SIGTERM and the first Ctrl-C fill: an exception at any moment could come between a step's start and its being known."""
    asked: list[int] = []

    def ask(number: int, _) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    heard = [
        signal.SIGTERM,
        *([signal.SIGINT] if signal.getsignal(signal.SIGINT) != signal.SIG_IGN else []),
    ]  # ignored where a shell has it so
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_more(running: dict, waiting: list[Step], jobs: int, logs: Path) -> None:
    """Start what is ready, in order, while there is room. What has a starter waits for all before it, and all after it wait for it."""
    for step in list(waiting):
        alone = step.starter and running or any(other.starter for other, _ in running.values())
        if len(running) == jobs or alone:
            return
        at_work = {
            other.output for other in (*waiting, *(other for other, _ in running.values()))
        }  # a summary of fewer seeds may be there
        if step.ready and at_work.isdisjoint(step.needs):
            slot = next(number for number in range(jobs) if number not in running)
            running[slot] = step, _start(step, slot, jobs, logs)
            waiting.remove(step)
    if not running:
        raise UserError(
            f"study: {waiting[0].what}: what it starts from is not there: {', '.join(map(str, waiting[0].needs))}"
        )


def _log_of(step: Step, logs: Path) -> Path:
    return logs / f"{folder_of(step.what)}.log"


def _start(step: Step, slot: int, jobs: int, logs: Path) -> subprocess.Popen:
    words = step.started_as()
    typed = f"study: {step.what}: {shlex.join(words if step.starter else ['ds-distill', *words[3:]])}"
    environment = {
        "DS_DISTILL_PYTHON": sys.executable,
        **os.environ,
    }  # launch.sh takes this Python, unless told otherwise
    if jobs == 1:
        log(f"\n{typed}")
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
    if not step.starter:
        environment |= _share(slot, jobs)
    logs.mkdir(parents=True, exist_ok=True)
    with open(_log_of(step, logs), "a", encoding="utf-8") as log_file:
        log_file.write(f"{typed}\n")
        log(f"\n{typed}\n  (what it says: {log_file.name})")
        log_file.flush()
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log_file, env=environment)


def _share(slot: int, jobs: int) -> dict[str, str]:
    """Of the cores, and a GPU where there are any."""
    import torch

    from ds_distill.data.prepare import cores

    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", "")) or [
        str(device) for device in range(torch.cuda.device_count())
    ]
    share = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
    return share | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})


def _check(step: Step, status: int, log_file: Path | None) -> None:
    """UserError unless the step is done. Launchers may end with 0 where a rank was killed, and a folder shared by hosts may show a file late."""
    deadline = time.monotonic() + LATE
    while status == 0 and not step.done and time.monotonic() < deadline:
        time.sleep(0.1)
    if step.done:
        return
    if log_file:
        said = log_file.read_text(errors="replace", encoding="utf-8").replace("\r", "\n").splitlines()
        log("\n" + "\n".join([line for line in said if line.strip()][-TAIL:]))
    why = f"ended with status {status}" if status else f"ended without {step.output / 'summary.json'}"
    raise UserError(
        f"study: {step.what} {why}{f' ({log_file})' if log_file else ''}; the same command goes on from there"
    )
