"""What this process has last been seen to do: how much work it has noted, and where its main thread is."""

import sys
import threading
from pathlib import Path

_noted = 0


def note_progress() -> None:
    """Note that a piece of work is done: a step, a batch, some text. What watches a job takes silence here for a hang."""
    global _noted
    _noted += 1  # a lost count of two threads does no harm: what is asked is whether it moves


def progress_count() -> int:
    """Return how often progress has been noted in this process."""
    return _noted


def main_thread_position() -> str:
    """Return where the main thread is: its innermost function, and the innermost of this package that called it."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    if frame is None:
        return "ended"
    place, package = _describe(frame), Path(__file__).parents[1]
    while frame is not None and package not in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    ours = _describe(frame) if frame is not None else place
    return f"in {place}" if ours == place else f"in {place}, called from {ours}"


def _describe(frame) -> str:
    file = "/".join(Path(frame.f_code.co_filename).parts[-3:])
    return f"{frame.f_code.co_name} ({file}, line {frame.f_lineno})"
