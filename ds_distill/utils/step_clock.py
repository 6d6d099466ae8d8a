"""How far this process is in its current step, for whoever watches a job whose steps take too long."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

LEAST = 60.0  # seconds that a step takes at least before it is overdue
TIMES = 20  # the median step
KNOWN = 5  # steps before any is overdue, since the first ones compile and fill caches


class Position(NamedTuple):
    """How far a process is: the step that it is in, from 1, and how many parts of it are computed."""

    step: int
    parts: int


class StepClock:
    """The steps of this process: where it is, and how long they take.

    Attributes:
        least: Seconds that a step takes at least before it is overdue.
    """

    def __init__(self, least: float = LEAST):
        self.least = least
        self._seconds: deque[float] = deque(maxlen=50)
        self._step, self._began = 0, 0.0  # 0.0: between two steps
        self._parts: list[Callable[[], bool]] = []

    def begin(self, step: int) -> None:
        """Begin a step, counted from 1."""
        self._parts = []
        self._step, self._began = step, time.monotonic()

    def finish_part(self, is_done: Callable[[], bool] = lambda: True) -> None:
        """Note that a part of the step has been computed, or handed to a device; `is_done` asks the device."""
        self._parts.append(is_done)

    def end(self) -> None:
        """End the step."""
        self._seconds.append(time.monotonic() - self._began)
        self._began = 0.0

    def position(self) -> Position:
        """Return how far this process is."""
        return Position(self._step, sum(_is_done(part) for part in list(self._parts)))

    def median(self) -> float:
        """Return the median time of the last steps in seconds; 0 where there was none."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    def overdue(self) -> float | None:
        """Return for how many seconds the current step has run where that is too long, else None."""
        if not self._began or len(self._seconds) < KNOWN:
            return None
        seconds = time.monotonic() - self._began
        return seconds if seconds > max(self.least, TIMES * self.median()) else None


def _is_done(part: Callable[[], bool]) -> bool:
    try:
        return part()
    except RuntimeError:  # the device is gone
        return False


STEPS = StepClock()  # this process's
