"""The Pareto frontier: the points for which no other one costs less and is worth as much."""

from __future__ import annotations

from collections.abc import Sequence


def find_frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points on the frontier, by rising cost and thus by rising worth.

    A point is on the frontier if every other point costs more or is worth less. Of equal points, the first
    one is on it.

    Args:
        points: (cost, worth) of each point, such as milliseconds and a score. Finite numbers.
    """
    frontier: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index)):
        if not frontier or points[index][1] > points[frontier[-1]][1]:
            frontier.append(index)
    return frontier
