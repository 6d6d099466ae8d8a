"""Which shapes layers are cut to: those of the least error in the time that they may take.

Source: Frantar and Alistarh 2022 (SPDY); for structures Kurtic et al. 2023 (ZipLM), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GRID = 10_000  # steps that the time is divided into; each option's own is rounded up to whole ones


class Option(NamedTuple):
    """One way to cut one part of a layer.

    Attributes:
        size: What is left: heads, or columns.
        milliseconds: What it takes.
        error: What it costs.
    """

    size: int
    milliseconds: float
    error: float


def choose_options(parts: Sequence[Sequence[Option]], milliseconds: float) -> list[int] | None:
    """Return the size to cut each part to, so that the sum of errors is least; None where no choice is fast enough.

    Args:
        parts: The options of each part.
        milliseconds: What the parts may take together.
    """
    if milliseconds < 0:
        return None
    steps = [[_round_up(option.milliseconds, milliseconds) for option in options] for options in parts]
    least = np.zeros(GRID + 1)  # least[t]: the least error of the parts so far within t steps
    choices = []
    for options, times in zip(parts, steps, strict=True):
        best, choice = np.full(GRID + 1, np.inf), np.full(GRID + 1, -1)
        for number, (option, time) in enumerate(zip(options, times, strict=True)):
            if time > GRID:
                continue
            candidate = least[: GRID + 1 - time] + option.error
            better = candidate < best[time:]
            best[time:][better], choice[time:][better] = candidate[better], number
        least = best
        choices.append(choice)
    if not np.isfinite(least[GRID]):
        return None
    left, sizes = GRID, []
    for options, times, choice in zip(reversed(parts), reversed(steps), reversed(choices), strict=True):
        number = choice[left]
        sizes.append(options[number].size)
        left -= times[number]
    return sizes[::-1]


def _round_up(milliseconds: float, limit: float) -> int:
    """Return how many steps of the limit a time takes; beyond GRID where it exceeds the limit."""
    if not limit:
        return GRID + 1 if milliseconds else 0
    return min(GRID + 1, int(np.ceil(milliseconds / limit * GRID - 1e-9)))
