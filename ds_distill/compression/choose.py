"""Which shapes layers are cut to: those of the least error among all that a budget allows.

Source: Frantar and Alistarh 2022 (SPDY); for structures Kurtic et al. 2023 (ZipLM), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

GRID = 10_000  # steps that the budget is divided into; each option's cost is rounded up to whole ones


class Option(NamedTuple):
    """One way to cut one part of a layer.

    Attributes:
        size: What is left: heads, or columns.
        cost: What it takes of the budget: milliseconds, or operations.
        error: What it does to the layer's output.
    """

    size: int
    cost: float
    error: float


def choose_options(parts: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """Return the size to cut each part to, so that the sum of errors is least; None where the budget allows none.

    Args:
        parts: The options of each part.
        budget: What the parts may cost together, in the unit of their costs.
    """
    if budget < 0:
        return None
    steps = [[_round_up(option.cost, budget) for option in options] for options in parts]
    least = np.zeros(GRID + 1)  # least[t]: the least error of the parts so far within t steps
    choices = []
    for options, costs in zip(parts, steps, strict=True):
        best, choice = np.full(GRID + 1, np.inf), np.full(GRID + 1, -1)
        for number, (option, cost) in enumerate(zip(options, costs, strict=True)):
            if cost > GRID:
                continue
            candidate = least[: GRID + 1 - cost] + option.error
            better = candidate < best[cost:]
            best[cost:][better], choice[cost:][better] = candidate[better], number
        least = best
        choices.append(choice)
    if not np.isfinite(least[GRID]):
        return None
    left, sizes = GRID, []
    for options, costs, choice in zip(reversed(parts), reversed(steps), reversed(choices), strict=True):
        number = choice[left]
        sizes.append(options[number].size)
        left -= costs[number]
    return sizes[::-1]


def _round_up(cost: float, budget: float) -> int:
    """Return how many steps of the budget a cost takes; beyond GRID where it exceeds the budget."""
    if not budget:
        return GRID + 1 if cost else 0
    return min(GRID + 1, int(np.ceil(cost / budget * GRID - 1e-9)))
