"""The processes that report a run through the libraries of experiment trackers.

The run itself only appends its figures to a file. For each tracker a process reads the file, so that a library can
neither slow the run, nor end it, nor change its random numbers, nor write between its lines. The file also survives
whatever happens to the process: the next start of the run reports the rest.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import IO, Any, cast

from ds_distill.utils.console import log, spinner
from ds_distill.utils.files import json_text, write_json

ROWS, RUN = "rows.jsonl", "run.json"
PATIENCE = 60  # seconds, at most twice, that a library may take once the run has ended; then its process ends itself
LIMIT = 600  # seconds after which a process that does not even do that is killed
PACKAGE = Path(__file__).parents[2]


class TrackerProcesses:
    """A file of a run's figures, and a process for each tracker that reports them."""

    def __init__(self, names: list[str], folder: Path, name: str, config: Mapping[str, Any]):
        """Start the processes.

        Args:
            names: The trackers.
            folder: The folder of the file, and of what the trackers write.
            name: The name of the run.
            config: The settings of the run.
        """
        self.folder = folder = folder.resolve()  # a process may work in another folder
        self._names = names
        self._file: FileIO | None = None
        self._processes: dict[str, subprocess.Popen] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RUN, {"name": name, "config": config})
            self._file = open(folder / ROWS, "ab", buffering=0)
            self._file.write(b"\n")  # a kill may have left a part of a line, which must stay one of its own
            for tracker in names:
                self._processes[tracker] = _start(tracker, folder)
        except OSError as error:
            self._give_up(error)
        self._listeners = [
            threading.Thread(target=_print_lines, args=(process,), daemon=True) for process in self._processes.values()
        ]
        for listener in self._listeners:
            listener.start()

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Append the figures of a step to the file."""
        if self._file is None:
            return
        try:
            self._file.write(json_text({"step": step, "time": time.time(), "values": values}).encode() + b"\n")
        except OSError as error:
            self._give_up(error)

    def flush(self) -> None:
        """Do nothing: each line is in the file at once."""

    def close(self, finished: bool) -> None:
        """Tell the processes that the run has ended.

        They end by themselves, PATIENCE after the tracker has the run. Where the run is finished, they are waited for.
        """
        self._close_file()
        for process in self._processes.values():
            _end_input(process, b"finished" if finished else b"")
        deadline = time.monotonic() + LIMIT
        for name, process in self._processes.items() if finished else ():
            _wait(name, process, deadline)
        for listener in self._listeners if finished else ():
            listener.join(1)
        for name, process in self._processes.items() if finished else ():
            if process.returncode != 0:
                command = f"echo finished | python -m ds_distill.tracking.worker {name} {shlex.quote(str(self.folder))}"
                log(f"{name} has not received all metrics; to send the rest, run {command}")

    def _give_up(self, error: OSError) -> None:
        log(f"{error.filename or self.folder}: {error.strerror}; the run continues without {', '.join(self._names)}")
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a file system may report only now that it is full
                self._file.close()
            self._file = None


def _start(tracker: str, folder: Path) -> subprocess.Popen:
    """Start the process of a tracker; what the library prints goes to a file of its own."""
    path = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
    with open(folder / f"{tracker}.log", "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "ds_distill.tracking.worker", tracker, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the run, which then ends the input of this process
        )


def _print_lines(process: subprocess.Popen) -> None:
    """Print what a process has to say to the user."""
    for line in cast(IO[bytes], process.stdout):
        log(line.decode(errors="replace").rstrip())


def _end_input(process: subprocess.Popen, message: bytes) -> None:
    stdin = cast(IO[bytes], process.stdin)
    with contextlib.suppress(OSError):  # the process may have ended
        stdin.write(message)
    with contextlib.suppress(OSError):
        stdin.close()


def _wait(name: str, process: subprocess.Popen, deadline: float) -> None:
    """Wait for a process, and say so; kill it at the deadline."""
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        with spinner(f"{name} takes the run's last figures"), contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))
    if process.poll() is None:
        process.kill()
