"""A paired bootstrap over examples and seeds.

In each of `resamples` draws, the examples of the development set are drawn with replacement, once
for all models and all of their runs, which pairs every comparison by example. Within that, each
model's runs are drawn with replacement, for each model on its own. A model's score in a draw is the
mean over its drawn runs of the score on the drawn examples.

Of k runs, k − 1 are drawn: with k, the variance of a mean over seeds would come out too small by
the factor (k − 1)/k (Rao and Wu 1988, Resampling inference with complex survey data). One run stays
as it is, and its interval holds no variance of seeds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
CHUNK = 1 << 21  # drawn examples at a time, 16 MiB of counts


class Estimate(NamedTuple):
    """A figure with the limits of its interval."""

    value: float
    low: float
    high: float


def resample_scores(
    runs: Mapping[str, Sequence[np.ndarray]],
    score: Callable[[np.ndarray], np.ndarray],
    *,
    task: str = "",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return each model's scores on a task, fp64 [1 + resamples]: as measured, then in each draw.

    The draws are a pure function of (seed, task, number of examples), and for a model's runs of its
    name too, so that another model in a comparison changes no figure of the others.

    Args:
        runs: By model, the terms of each run on the same examples, [examples, terms]; see
            `tasks.metric_sums`.
        score: The score of sums of terms.
        task: The name of the task. The draws of two tasks are independent.
        resamples: How many draws.
        seed: The seed of the draws.
    """
    names = [(name, number) for name, own in runs.items() for number in range(len(own))]
    columns = np.concatenate([runs[name][number] for name, number in names], axis=1)
    ends = np.cumsum([runs[name][number].shape[1] for name, number in names])
    key, examples = [seed, zlib.crc32(task.encode())], len(columns)
    each = np.empty((1 + resamples, len(names)))  # a run's score in each draw

    def fill(rows: slice, sums: np.ndarray) -> None:
        for place, part in enumerate(np.split(sums, ends[:-1], axis=1)):
            each[rows, place] = score(part)

    fill(slice(0, 1), columns.sum(0, keepdims=True))
    random, size = np.random.default_rng(key), max(1, CHUNK // examples)
    for start in range(1, 1 + resamples, size):
        rows = min(size, 1 + resamples - start)
        drawn = random.integers(0, examples, (rows, examples)) + examples * np.arange(rows)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=rows * examples).reshape(rows, examples)
        fill(slice(start, start + rows), counts.astype(np.float64) @ columns)
    scores = {}
    for name in runs:
        own = each[:, [place for place, (of, _) in enumerate(names) if of == name]]
        count = own.shape[1]
        picks = np.random.default_rng([*key, zlib.crc32(name.encode())]).integers(
            0, count, (resamples, max(1, count - 1))
        )
        drawn_runs = np.take_along_axis(own[1:], picks, axis=1)
        scores[name] = np.concatenate([own[:1].mean(1), drawn_runs.mean(1)])
    return scores


def estimate(figures: np.ndarray) -> Estimate | None:
    """Return a figure with its percentile interval; None where it could not be measured.

    Draws in which it could not be measured are left out; where they are more than those outside of
    the interval, there is no estimate either.

    Args:
        figures: [1 + resamples], as `resample_scores` returns them, or any function of such arrays.
    """
    value, draws = float(figures[0]), figures[1:]
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(finite) < CONFIDENCE * len(draws):
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def share_of(figures: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return figures / whole, NaN where the whole is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, figures / whole, np.nan)
