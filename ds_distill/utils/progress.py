"""The last signs of activity of this process: how much work it has noted, and where its main thread is."""

import sys
import threading
import time
from pathlib import Path
from typing import cast

_noted = 0


def note_progress() -> None:
    """Note that a piece of work is done: a step, a batch, some text. Watchers of a job take silence for a hang."""
    global _noted
    _noted += 1  # a count lost between two threads does no harm, since watchers only ask whether it moves


def progress_count() -> int:
    """Return how often progress has been noted in this process."""
    return _noted


def main_thread_position() -> str:
    """Return where the main thread is: its innermost function, and the innermost of this package that called it."""
    frame = sys._current_frames().get(cast(int, threading.main_thread().ident))
    if frame is None:
        return "ended"
    place, package = _describe(frame), Path(__file__).parents[1]
    while frame is not None and package not in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    package_place = _describe(frame) if frame is not None else place
    return f"in {place}" if package_place == place else f"in {place}, called from {package_place}"


class ProgressWatch:
    """Watch this process while a block runs.

    Where the process notes no progress for minutes, a line reports where it is, once each time. The
    watch ends nothing. The ranks of a job have a heartbeat instead, which does.

    Args:
        stalled: Seconds without progress after which the line is printed.
        every: Seconds between two checks.
    """

    def __init__(self, stalled: float = 300.0, every: float = 2.0):
        self._stalled, self._every, self._ended = stalled, every, threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._watch, name="progress_watch", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        done, since, reported = progress_count(), time.monotonic(), False
        while not self._ended.wait(self._every):
            now = time.monotonic()
            if progress_count() != done:
                done, since, reported = progress_count(), now, False
            elif now - since > self._stalled and not reported:
                reported = True
                line = f"no progress for {(now - since) / 60:.0f} min: the process is {main_thread_position()}"
                print(f"\nds-distill: {line}", file=sys.stderr, flush=True)


def _describe(frame) -> str:
    file = "/".join(Path(frame.f_code.co_filename).parts[-3:])
    return f"{frame.f_code.co_name} ({file}, line {frame.f_lineno})"
