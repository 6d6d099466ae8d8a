"""The process that reports a run through one tracker's library: python -m ds_distill.tracking.worker TRACKER FOLDER.

It ends when its input does. Its output has lines for the user; what the library prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ds_distill.tracking.processes import PATIENCE, ROWS, RUN
from ds_distill.utils.files import write_json

PAUSE = 1.0  # seconds between two looks at the file; a library takes the lines of a pause at once
NO_TELEMETRY = {  # the libraries' own reports of their use and errors
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


class Progress:
    """What a tracker has of a run, kept in a file.

    Attributes:
        id: The name that the tracker gave the run, or None before it has.
        offset: The bytes of the file of figures that have been read.
        steps: By figure, the last step that has been reported.
    """

    def __init__(self, file: Path):
        self._file = file
        saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.id: str | None = saved.get("id")
        self.offset: int = saved.get("offset", 0)
        self.steps: dict[str, int] = saved.get("steps", {})

    def begin(self, id: str) -> None:
        """Keep the name of the run. A new one means that the tracker has nothing of it."""
        if id != self.id:
            self.id, self.offset, self.steps = id, 0, {}
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_json(self._file, {"id": self.id, "offset": self.offset, "steps": self.steps})

    def read(self, rows: Path) -> list[dict[str, Any]]:
        """Return the whole lines that are new in the file of figures, without figures that have been reported.

        A run that resumes takes the steps after its checkpoint again, with the same figures.
        """
        with open(rows, "rb") as file:
            file.seek(self.offset)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self.offset += len(lines)
        return [row for line in lines.splitlines() if (row := self._new_part(line))]

    def _new_part(self, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except ValueError:  # a kill has cut it
            return None
        values = {
            key: value
            for key, value in row["values"].items()
            if value is not None and row["step"] > self.steps.get(key, -1)
        }
        self.steps.update(dict.fromkeys(values, row["step"]))
        return row | {"values": values} if values else None


def report(
    tracker: str,
    begin: Callable[..., Any],
    folder: Path,
    begun: threading.Event,
    ended: threading.Event,
    messages: list[str],
    say: Callable[[str], None],
) -> None:
    """Report the figures that a run appends to its file, until it has ended.

    Args:
        tracker: The name of the tracker.
        begin: Begins the run with the tracker, or continues it.
        folder: The folder of the run's trackers.
        begun: Set once the tracker has the run.
        ended: Set when the run has ended.
        messages: Its last word: "finished", or nothing where it has stopped.
        say: Prints a line for the user.
    """
    about = json.loads((folder / RUN).read_text(encoding="utf-8"))
    with open(folder / f"{tracker}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the process of a run that was killed a moment ago may still be at it
        progress = Progress(folder / f"{tracker}.json")
        run = begin(about["name"], about["config"], progress.id, folder, say)
        progress.begin(run.id)
        begun.set()
        while True:
            last = ended.wait(PAUSE)
            if rows := progress.read(folder / ROWS):
                run.log(rows)
                progress.save()
            if last:
                break
        run.finish("finished" in messages)


def main(tracker: str, folder: Path) -> NoReturn:
    """Report a run, and end this process; the user gets a line about what goes wrong."""
    # A training blocks the signals that ask for its end, and processes that it starts would keep them blocked.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # What the library prints, also from programs that it starts, goes to standard error.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the run may have been killed
            print(line, file=channel, flush=True)

    begun, ended, messages = threading.Event(), threading.Event(), list[str]()

    def listen() -> None:
        messages.append(sys.stdin.read().strip())
        ended.set()
        begun.wait(PATIENCE)  # a busy machine takes a minute for the import and a new database
        time.sleep(PATIENCE)
        say(f"{tracker}: its server has not answered in time ({folder / f'{tracker}.log'} has the details)")
        os._exit(1)  # the library still waits for it

    threading.Thread(target=listen, daemon=True).start()
    for key, value in NO_TELEMETRY.items():
        os.environ.setdefault(key, value)
    status = 0
    try:
        library = importlib.import_module(f"ds_distill.tracking.{tracker}")
        report(tracker, library.Run, folder, begun, ended, messages, say)
    except Exception as error:
        status = 1
        traceback.print_exc()
        words = " ".join(str(error).split())[:200] or type(error).__name__
        say(f"{tracker}: {words}; the run continues without it ({folder / f'{tracker}.log'} has the details)")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what the library does at Python's exit could wait for its server


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
