"""Places for the labels of a plot's points, so that none covers another one.

The labels are placed one after the other, each at the cheapest of many places around its point. A
place costs its distance from the point and what it covers: another point much, a line little. A place
that covers a label, or that reaches out of the plot, is not taken at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DIRECTIONS = 16
DISTANCES = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0, 40.0, 55.0, 75.0, 100.0, 140.0, 190.0)  # in points of 1/72 inch
POINT_COST, LINE_COST = 60.0, 14.0  # of what a label covers, in points of distance
SHORTER_COST = 70.0  # what a long label may cost more than a shorter one of the same point
GAP = 1.0  # between two labels


class Box(NamedTuple):
    """A rectangle, with its origin at the lower left."""

    left: float
    bottom: float
    right: float
    top: float


class Place(NamedTuple):
    """The place of a label: which of its texts is shown, and where."""

    text: int
    box: Box


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[Sequence[tuple[float, float]]],
    area: Box,
    lines: Sequence[Box] = (),
    radius: float = 3.0,
) -> list[Place | None]:
    """Return a place for the label of each point, or None where there is no room for any of its texts.

    The boxes lie within the area, and no two of them overlap.

    Args:
        points: The points, (x, y), those whose labels matter most first.
        sizes: The (width, height) of each text that may be the point's label, the best one first.
        area: What the labels must stay within.
        lines: What they had better not cover.
        radius: The size of a point's own mark.
    """
    marks = np.array([(x - radius, y - radius, x + radius, y + radius) for x, y in points]).reshape(-1, 4)
    thin = np.array(lines, float).reshape(-1, 4)
    taken: list[Box] = []
    places: list[Place | None] = []
    for point, texts in zip(points, sizes, strict=True):
        best: tuple[float, Place] | None = None
        for text, size in enumerate(texts):
            boxes, distances = _candidates(point, size, radius)
            inside = (
                (boxes[:, 0] >= area.left)
                & (boxes[:, 1] >= area.bottom)
                & (boxes[:, 2] <= area.right)
                & (boxes[:, 3] <= area.top)
            )
            free = inside & (_covered(boxes, np.array(taken).reshape(-1, 4), GAP) == 0)
            if not free.any():
                continue
            costs = distances + POINT_COST * _covered(boxes, marks) + LINE_COST * _covered(boxes, thin)
            costs = np.where(free, costs + SHORTER_COST * text, np.inf)
            cheapest = int(costs.argmin())
            if best is None or costs[cheapest] < best[0]:
                best = float(costs[cheapest]), Place(text, Box(*map(float, boxes[cheapest])))
        places.append(best[1] if best else None)
        if best:
            taken.append(best[1].box)
    return places


def _candidates(point: tuple[float, float], size: tuple[float, float], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes [places, 4] around a point, and how far each is from the point's mark."""
    distances = np.repeat(DISTANCES, DIRECTIONS)
    angles = np.tile(2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS, len(DISTANCES))
    across, up = np.cos(angles), np.sin(angles)
    # A box to the side of the point begins there; one above or below it may lie across, or begin at the point.
    sides, levels = np.sign(np.round(across, 1)), np.sign(np.round(up, 1))
    left = point[0] + across * (distances + radius / 2) + (sides - 1) / 2 * size[0]
    bottom = point[1] + up * (distances + radius / 2) + (levels - 1) / 2 * size[1]
    boxes = np.stack([left, bottom, left + size[0], bottom + size[1]], axis=1)
    return boxes, distances


def _covered(boxes: np.ndarray, others: np.ndarray, gap: float = 0.0) -> np.ndarray:
    """Return how many of the other boxes each box overlaps, [boxes]."""
    first, second = boxes[:, None], others[None]
    overlaps = (
        (first[..., 0] < second[..., 2] + gap)
        & (second[..., 0] < first[..., 2] + gap)
        & (first[..., 1] < second[..., 3] + gap)
        & (second[..., 1] < first[..., 3] + gap)
    )
    return overlaps.sum(axis=1)
