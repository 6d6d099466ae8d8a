"""The scheduler of a study: it runs each job in a process of its own.

It runs as many jobs side by side as asked for. A job begins when its inputs are there, and all
running jobs are ended together.
"""

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_distill.utils.articles import counted
from ds_distill.utils.console import ProgressBar, log, progress
from ds_distill.utils.devices import visible_gpus
from ds_distill.utils.errors import StoppedError, UserError
from ds_distill.utils.files import read_summary
from ds_distill.utils.parent import STUDY
from ds_distill.utils.progress import note_progress
from ds_distill.utils.stop_signals import heeded_signals

TAIL = 4  # how many lines of a failed job's log file are shown
TAIL_BYTES = 1000  # of a running job's log file, in which its last line is looked for
LATE = 10.0  # seconds


@dataclass(frozen=True)
class Job:
    """One command of a study.

    A job is done when its `output` has a summary, with at least `seeds` seeds where that is not 0.

    Args:
        depends_on: Folders that must have a summary first.
        model: The model that is fine-tuned: a folder or name, or the folder of the job that makes it.
        teacher: A fine-tuned teacher: a folder, or the folder of the job that makes it.
        every_teacher: Whether the models of all its seeds are used, and not the one at the median.
        launcher: The command that runs the job in place of this process's Python. Such a job takes
            the whole machine, or several machines, and runs alone.
    """

    what: str
    output: Path
    argv: tuple[str, ...]
    depends_on: tuple[Path, ...] = ()
    model: str | Path | None = None
    teacher: str | Path | None = None
    every_teacher: bool = False
    launcher: str = ""
    seeds: int = 0

    @property
    def done(self) -> bool:
        """Whether the job's summary is there, with all of its seeds."""
        summary = read_summary(self.output)
        return summary is not None and len(summary.get("seeds", ())) >= self.seeds

    @property
    def needs(self) -> list[Path]:
        """The folders that must have a summary before the job begins."""
        return [*self.depends_on, *(folder for folder in (self.model, self.teacher) if isinstance(folder, Path))]

    @property
    def ready(self) -> bool:
        """Whether all folders that the job needs have a summary."""
        return all((folder / "summary.json").is_file() for folder in self.needs)

    def command(self) -> list[str]:
        """Return the command as it is typed.

        The models that earlier jobs made are looked up at the call.
        """
        model_options = ["--model", str(_resolve_model(self.model))] if self.model else []
        return [
            *self.argv,
            *model_options,
            *(["--teacher", *self._find_teachers(self.teacher)] if self.teacher else []),
            "--output",
            str(self.output),
        ]

    def _find_teachers(self, folder: str | Path) -> list[str]:
        if not isinstance(folder, Path) or not self.every_teacher:
            return [str(_resolve_model(folder))]
        rows = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["seeds"]
        return [str(folder / f"seed={row['seed']}" / "model") for row in rows]

    def started_as(self) -> list[str]:
        """Return the words that start the job's process, with the launcher or the Python that runs it."""
        words = self.command()
        # launch.sh knows no command but distill, so that word is left out.
        return (
            [*split_launch_command(self.launcher), *words[1:]]
            if self.launcher
            else [sys.executable, "-m", "ds_distill", *words]
        )


def _resolve_model(source: str | Path) -> str | Path:
    """Return the folder of the model that a job made.

    The path is relative to the job's folder under its present name, which may differ from the one
    at the time of the job.
    """
    if not isinstance(source, Path):
        return source
    summary = json.loads((source / "summary.json").read_text(encoding="utf-8"))
    return source / (os.path.relpath(summary["export"], summary["output"]) if "output" in summary else "export")


def split_launch_command(starter: str) -> list[str]:
    """Return the words of a command that starts distillations, with ~ expanded.

    Raises:
        ValueError: If a quote is left open.
    """
    return [os.path.expanduser(word) for word in shlex.split(starter)]


def make_folder_name(name: str) -> str:
    """Return a name as the name of a folder, with nothing in it that leads to another folder."""
    return re.sub(r"[^\w.-]+|^\.+$", "_", name)


def run_jobs(jobs: list[Job], parallel: int, logs: Path) -> None:
    """Run all jobs that are not done.

    A single job writes to the terminal. Jobs that run side by side each write to a file in `logs`,
    and each gets its share of the cores and, on a machine with GPUs, one GPU in turn. When a job
    fails or a signal comes, the running jobs are terminated and waited for: a distillation saves
    first, and the others resume from what they have kept.

    Raises:
        StoppedError: If a signal other than Ctrl-C arrives, at the study or at a job.
        UserError: If a job fails.
        KeyboardInterrupt: On Ctrl-C.
    """
    waiting = [job for job in jobs if not job.done]
    parallel, running = max(1, min(parallel, len(waiting))), dict[int, tuple[Job, subprocess.Popen]]()  # by slot
    with _collect_signals() as signals, progress(len(jobs), "study", "job", initial=len(jobs) - len(waiting)) as bar:
        bar.is_even = False  # jobs take seconds or hours
        try:
            while waiting or running:
                _start_more(running, waiting, parallel, logs)
                _show(bar, running, logs if parallel > 1 else None)
                shown = time.monotonic()
                while not signals and all(process.poll() is None for _, process in running.values()):
                    time.sleep(0.1)
                    note_progress()  # each job has a watch of its own
                    if parallel > 1 and time.monotonic() - shown > 2:
                        _show(bar, running, logs)
                        shown = time.monotonic()
                if signal.SIGINT in signals:
                    raise KeyboardInterrupt
                if signals:
                    name = signal.Signals(signals[0]).name
                    raise StoppedError(f"study: asked to end by {name}; repeat the command to resume")
                for slot, (job, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        _check_done(job, process.returncode, _get_log_file(job, logs) if parallel > 1 else None)
                        bar.update()
        except BaseException:
            if running:
                log(f"study: waiting for {counted(len(running), 'job')} to save")
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
            raise


def _show(bar: ProgressBar, running: dict, logs: Path | None) -> None:
    """Show the running jobs, and the last line of each one's file in `logs`."""
    jobs = [job for job, _ in running.values()]
    last = tuple(_get_last_line(_get_log_file(job, logs)) for job in jobs) if logs else ()
    bar.show(", ".join(job.what for job in jobs), details=last)
    bar.refresh()


@contextlib.contextmanager
def _collect_signals() -> Iterator[list[int]]:
    """Yield a list that the first Ctrl-C and other requests to end fill.

    An exception at any moment could come after a job has started and before it is registered.
    """
    signals: list[int] = []

    def collect(number: int, _) -> None:
        signals.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    # What a shell or nohup has ignored stays ignored.
    before: dict[int, Any] = {number: signal.signal(number, collect) for number in heeded_signals()}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_more(running: dict, waiting: list[Job], parallel: int, logs: Path) -> None:
    """Start the jobs that are ready, in order, while there is room.

    A job with a launcher waits for all jobs before it, and all jobs after it wait for it.
    """
    for job in list(waiting):
        alone = job.launcher and running or any(other.launcher for other, _ in running.values())
        if len(running) == parallel or alone:
            return
        # A job still at work may already have a summary, of fewer seeds.
        at_work = {other.output for other in (*waiting, *(other for other, _ in running.values()))}
        if job.ready and at_work.isdisjoint(job.needs):
            slot = next(number for number in range(parallel) if number not in running)
            running[slot] = job, _start(job, slot, parallel, logs)
            waiting.remove(job)
    if not running:
        raise UserError(
            f"study: {waiting[0].what}: its inputs do not exist: {', '.join(map(str, waiting[0].needs))}; repeat the "
            "command after restoring them"
        )


def _get_log_file(job: Job, logs: Path) -> Path:
    return logs / f"{make_folder_name(job.what)}.log"


def _split_log(text: str) -> list[str]:
    """Return the lines of a log that are not blank."""
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()]


def _get_last_line(file: Path) -> str:
    """Return the last whole line of a job's log file, without the time at its front; "" while there is none."""
    if not file.is_file():
        return ""
    with open(file, "rb") as lines:
        lines.seek(max(0, file.stat().st_size - TAIL_BYTES))
        whole = lines.read().decode("utf-8", "replace").rpartition("\n")[0]
    said = _split_log(whole)
    return re.sub(r"^[\d-]+ [\d:]+ ", "", said[-1]) if said else ""


def _start(job: Job, slot: int, parallel: int, logs: Path) -> subprocess.Popen:
    words = job.started_as()
    typed = f"study: {job.what}: {shlex.join(words if job.launcher else ['ds-distill', *words[3:]])}"
    # launch.sh uses this Python, unless the environment names another.
    environment = {"DS_DISTILL_PYTHON": sys.executable, **os.environ, STUDY: str(os.getpid())}
    if parallel == 1:
        log(f"\n{typed}")
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
    if not job.launcher:
        environment |= _make_environment(slot, parallel)
    logs.mkdir(parents=True, exist_ok=True)
    with open(_get_log_file(job, logs), "a", encoding="utf-8") as log_file:
        log_file.write(f"{typed}\n")
        log(f"\n{typed}\n  (log file: {log_file.name})")
        log_file.flush()
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log_file, env=environment)


def _make_environment(slot: int, parallel: int) -> dict[str, str]:
    """Return the environment that gives a job its share of the cores, and a GPU where there are any."""
    import torch

    from ds_distill.utils.machine import cores

    gpus = visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", "")) or [
        str(device) for device in range(torch.cuda.device_count())
    ]
    share = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores() // parallel))}
    return share | ({"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {})


def _check_done(job: Job, status: int, log_file: Path | None) -> None:
    """Raise UserError unless the job is done.

    Launchers may end with status 0 although a rank was killed, and a folder shared by hosts may
    show a file late.
    """
    deadline = time.monotonic() + LATE
    while status == 0 and not job.done and time.monotonic() < deadline:
        time.sleep(0.1)
    if job.done:
        return
    if status == StoppedError.STATUS:
        raise StoppedError(f"study: {job.what} was asked to end, and has saved; repeat the command to resume")
    if log_file:
        log("\n" + "\n".join(_split_log(log_file.read_text(errors="replace", encoding="utf-8"))[-TAIL:]))
    reason = f"ended with status {status}" if status else f"ended without writing {job.output / 'summary.json'}"
    raise UserError(
        f"study: {job.what} {reason}{f' (see {log_file})' if log_file else ''}; repeat the command to resume"
    )
