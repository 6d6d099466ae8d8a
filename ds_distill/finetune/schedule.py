"""A study's steps, each in a process of its own, so many side by side, begun when what they start from is there and ended together."""

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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ds_distill.console import progress, say
from ds_distill.errors import UserError

TAIL = 4  # lines of a failed step's log that are said


@dataclass(frozen=True)
class Step:
    """One command of a study, done when its `output` has a summary. after: folders that have to have theirs first. starter: what runs it in place of
    this process's Python; such a step takes the whole machine, or several, and runs alone."""

    what: str
    output: Path
    words: tuple[str, ...]
    after: tuple[Path, ...] = ()
    model: str | Path | None = None
    teacher: Path | None = None
    starter: str = ""

    @property
    def done(self) -> bool:
        return (self.output / "summary.json").is_file()

    @property
    def ready(self) -> bool:
        needs = (*self.after, *(folder for folder in (self.model, self.teacher) if isinstance(folder, Path)))
        return all((folder / "summary.json").is_file() for folder in needs)

    def command(self) -> list[str]:
        """As it is typed; what earlier steps made is looked up now."""
        own = ["--model", str(_made(self.model))] if self.model else []
        return [*self.words, *own, *(["--teacher", str(_made(self.teacher))] if self.teacher else []), "--output", str(self.output)]

    def started_as(self) -> list[str]:
        words = self.command()
        # launch.sh has no command but distill
        return [*shlex.split(self.starter), *words[1:]] if self.starter else [sys.executable, "-m", "ds_distill", *words]


def _made(where: str | Path) -> str | Path:
    return json.loads((where / "summary.json").read_text())["export"] if isinstance(where, Path) else where


def folder_of(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def run_steps(steps: list[Step], jobs: int, logs: Path) -> None:
    """Do all that is not done. One at a time they write to the terminal; side by side each to a file in `logs`, with its share of the cores, and
    on a machine with GPUs one of these, in turn.

    UserError where a step ends with another status than 0, or SIGTERM comes: what runs is then asked to save and to end, and waited for.
    """
    waiting = [step for step in steps if not step.done]
    slots: list[tuple[Step, subprocess.Popen] | None] = [None] * jobs
    with _sigterm() as asked, progress(len(steps), "study", "step", initial=len(steps) - len(waiting)) as bar:
        try:
            while waiting or any(slots):
                _fill(slots, waiting, logs)
                bar.set_postfix_str(", ".join(slot[0].what for slot in slots if slot), refresh=jobs > 1)
                _wait(lambda: bool(asked) or any(slot and slot[1].poll() is not None for slot in slots), bar.refresh if jobs > 1 else None)
                if asked:
                    raise UserError("study: ended by SIGTERM; the same command goes on from there")
                for number, slot in enumerate(slots):
                    if slot and slot[1].poll() is not None:
                        slots[number] = None
                        if slot[1].returncode:
                            _tell_end_of(slot[0], logs if jobs > 1 else None)
                            raise UserError(f"study: {slot[0].what} ended with status {slot[1].returncode}; the same command goes on from there")
                        bar.update()
        except BaseException as error:
            for slot in slots:
                # Ctrl-C has reached the whole terminal: a second signal would cut their saving short
                if slot and not isinstance(error, KeyboardInterrupt):
                    slot[1].terminate()
            for slot in slots:
                if slot:
                    slot[1].wait()
            raise


@contextlib.contextmanager
def _sigterm():
    """A list that SIGTERM fills."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _fill(slots: list, waiting: list[Step], logs: Path) -> None:
    """Start what is ready, in order, while a slot is free."""
    for step in list(waiting):
        alone = any(slot and slot[0].starter for slot in slots) or (step.starter and any(slots))
        if None not in slots or alone:
            return
        if step.ready:
            number = slots.index(None)
            slots[number] = step, _start(step, number, len(slots), logs)
            waiting.remove(step)
    if not any(slots):
        raise UserError(f"study: {waiting[0].what}: what it starts from is not there; remove {waiting[0].output.parent}, or choose another --output")


def _start(step: Step, slot: int, jobs: int, logs: Path) -> subprocess.Popen:
    words, log = step.started_as(), None
    typed = f"\nstudy: {step.what}: {shlex.join(words if step.starter else ['ds-distill', *words[3:]])}"
    environment = {"DS_DISTILL_PYTHON": sys.executable, **os.environ}  # launch.sh takes this Python, unless told otherwise
    if jobs > 1:
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{folder_of(step.what)}.log"
        typed += f"\n  (what it says: {log})"
        if not step.starter:
            environment |= _share(slot, jobs)
    say(typed)
    with open(log, "a") if log else contextlib.nullcontext() as errors:
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=errors, env=environment)


def _share(slot: int, jobs: int) -> dict[str, str]:
    """Of the cores, and a GPU where there are any."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = visible.split(",") if visible else [str(device) for device in range(torch.cuda.device_count())]
    share = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    return share | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})


def _wait(until: Callable[[], bool], show: Callable[[], object] | None) -> None:
    shown = time.monotonic()
    while not until():
        time.sleep(0.1)
        if show and time.monotonic() - shown > 2:
            show()
            shown = time.monotonic()


def _tell_end_of(step: Step, logs: Path | None) -> None:
    if logs:
        said = (logs / f"{folder_of(step.what)}.log").read_text(errors="replace").replace("\r", "\n").splitlines()
        say("\n" + "\n".join([line for line in said if line.strip()][-TAIL:]))
