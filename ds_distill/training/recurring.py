"""What recurs in a run, checkpoints and evaluations: by steps, or by a clock that the ranks agree on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from ds_distill.config.intervals import interval_seconds
from ds_distill.recipe import Training

# What the recipe's "auto" means.
SAVE_SECONDS = 600.0  # of training between checkpoints
EVALUATIONS = 10  # of a run at least, after equal numbers of steps
# Where a tenth of a run is long, there are more, as long as they cost little. On hundreds of GPUs these steps take
# seconds.
CHEAP_EVAL_STEPS, EVAL_SHARE = 500, 0.02


class Recurring:
    """Says when something is due. Steps decide alike on every rank and in every run; clocks do not.

    It is due every `steps` steps and at the end. This rank's clock also asks for it every `seconds`,
    and every `cheap_steps` steps as long as all occurrences so far took at most `share` of the time.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        steps: int = 0,
        seconds: float | None = None,
        cheap_steps: int = 0,
        share: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Start the clock.

        Args:
            total_steps: The steps of the whole run.
            steps: The steps between two occurrences; 0: none.
            seconds: The seconds between two occurrences; None: not by time.
            cheap_steps: The steps between two occurrences that may be left out; 0: none.
            share: The greatest share of the time, from 0 to 1, at which these occur.
            clock: A monotonic clock, in seconds.
        """
        self.total_steps, self.steps, self.seconds = total_steps, steps, seconds
        self.cheap_steps, self.share, self._clock = cheap_steps, share, clock
        self._began = self._last = clock()
        self._spent = 0.0

    @classmethod
    def every(cls, interval: int | str, total_steps: int) -> Recurring:
        """Return what is due at an interval that is not "auto", as `config.intervals.read_interval` returns it."""
        seconds = interval_seconds(interval)
        return cls(total_steps, steps=interval if isinstance(interval, int) else 0, seconds=seconds)

    def is_asked(self, step: int) -> bool:
        """Return whether this rank's clock asks for it after `step` steps. The ranks have to agree on it."""
        now = self._clock()
        if self.seconds is not None and now - self._last >= self.seconds:
            return True
        cheap = self._spent <= self.share * (now - self._began)
        return bool(self.cheap_steps) and step % self.cheap_steps == 0 and cheap

    def is_due(self, step: int, asked: bool) -> bool:
        """Return whether it is due after `step` steps, where `asked` is what the ranks agreed on."""
        return step == self.total_steps or asked or bool(self.steps) and step % self.steps == 0

    @contextlib.contextmanager
    def occurrence(self) -> Iterator[None]:
        """Measure an occurrence. The time until the next one begins at its end."""
        began = self._clock()
        yield
        self._last = self._clock()
        self._spent += self._last - began


def when_to_save(training: Training, total_steps: int) -> Recurring:
    """Return when checkpoints are due."""
    if training.save_every == "auto":
        return Recurring(total_steps, seconds=SAVE_SECONDS)
    return Recurring.every(training.save_every, total_steps)


def when_to_evaluate(training: Training, total_steps: int) -> Recurring:
    """Return when held-out evaluations are due."""
    if training.eval_every == "auto":
        tenth = max(1, total_steps // EVALUATIONS)
        cheap = CHEAP_EVAL_STEPS if tenth > CHEAP_EVAL_STEPS else 0
        return Recurring(total_steps, steps=tenth, cheap_steps=cheap, share=EVAL_SHARE)
    return Recurring.every(training.eval_every, total_steps)
