"""The rate of a run's last steps, and its means since the start."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

WINDOW_STEPS = 50


class _Totals(NamedTuple):
    """Real tokens of all ranks, seconds of steps, and seconds of these that the slowest rank waited for batches."""

    tokens: int
    seconds: float
    waited: float

    @classmethod
    def of(cls, rows: deque[_Totals]) -> _Totals:
        return cls(sum(row.tokens for row in rows), sum(row.seconds for row in rows), sum(row.waited for row in rows))


class Throughput:
    """Counts steps and the time that they take.

    The time of a step runs from the end of the step before to its own end, without evaluations,
    checkpoints and compiling.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        """Start the clock.

        Args:
            clock: A monotonic clock, in seconds.
        """
        self._clock = clock
        self._window: deque[_Totals] = deque(maxlen=WINDOW_STEPS)
        self._all = _Totals(0, 0.0, 0.0)
        self._began = self._last = clock()
        self._compiling = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out of the step that it interrupts."""
        began = self._clock()
        try:
            yield
        finally:
            self._last += self._clock() - began

    def add(self, tokens: int, waited: float, compiling: float = 0.0) -> None:
        """Count a step that ends now.

        Args:
            tokens: The real tokens of the step, over all ranks; 0 where it was skipped.
            waited: The seconds of it that the slowest rank waited for its batches.
            compiling: The seconds that compiling has taken since the start of the process.
        """
        now = self._clock()
        compiled, self._compiling = compiling - self._compiling, compiling
        step = _Totals(tokens, max(now - self._last - compiled, 0.0), waited)
        self._last = now
        self._window.append(step)
        self._all = _Totals.of(deque((self._all, step)))

    @property
    def tokens_per_second(self) -> float:
        """The rate over the last WINDOW_STEPS steps."""
        last = _Totals.of(self._window)
        return last.tokens / last.seconds if last.seconds else 0.0

    @property
    def data_wait_share(self) -> float:
        """The share, from 0 to 1, of the last WINDOW_STEPS steps' time that the slowest rank waited for batches."""
        last = _Totals.of(self._window)
        return min(1.0, last.waited / last.seconds) if last.seconds else 0.0

    def means(self) -> dict[str, float]:
        """Return the means since the start of the process: nothing where there was no step.

        `tokens_per_second` counts all the time, with evaluations, checkpoints and compiling;
        `step_tokens_per_second` and `data_wait_share` are those of the steps alone.
        """
        tokens, seconds, waited = self._all
        if not seconds:
            return {}
        return {
            "tokens_per_second": tokens / (self._last - self._began),
            "step_tokens_per_second": tokens / seconds,
            "data_wait_share": waited / seconds,
        }
