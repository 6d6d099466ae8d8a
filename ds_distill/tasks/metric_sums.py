"""Metrics as functions of sums over examples.

`metrics.py` has the definitions. In this form, the score of a set in which examples occur any
number of times is a function of a weighted sum, so that thousands of resampled sets are scored by
one product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NO_VARIANCE = 1e-12  # relative to the mean square; below it, what is left of a constant's variance is rounding


class MetricSums(NamedTuple):
    """A metric in two parts.

    Attributes:
        terms: Takes predictions and labels, both [examples], or [examples, classes] of 0 and 1 for any number of
            labels, and returns fp64 [examples, terms].
        score: Takes sums of terms over examples, [..., terms], and returns scores, [...]. They are
            NaN where there is nothing to measure a score on.
    """

    terms: Callable[[np.ndarray, np.ndarray], np.ndarray]
    score: Callable[[np.ndarray], np.ndarray]


def mean_terms(values: np.ndarray) -> np.ndarray:
    """Return the terms of the mean of `values`, [examples], whose score is `mean_score`."""
    return np.stack([np.ones(len(values)), values], axis=1).astype(np.float64)


def mean_score(sums: np.ndarray) -> np.ndarray:
    """Return the means of values from the sums of their terms."""
    return _divide(sums[..., 1], sums[..., 0])


def _accuracy_terms(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return mean_terms((predicted == labels).reshape(len(labels), -1).all(axis=1))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _f1_terms(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    predicted, labels = predicted == 1, labels == 1
    return np.stack([predicted & labels, predicted, labels], axis=1).astype(np.float64)


def _f1_score(sums: np.ndarray) -> np.ndarray:
    return _divide(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _class_terms(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each class [right, predicted, label], each of all classes in turn."""
    if labels.ndim == 1:
        classes = np.arange(max(predicted.max(initial=0), labels.max(initial=0)) + 1)
        predicted, labels = predicted[:, None] == classes, labels[:, None] == classes
    predicted, labels = predicted != 0, labels != 0
    return np.concatenate([predicted & labels, predicted, labels], axis=1).astype(np.float64)


def _f1_macro_score(sums: np.ndarray) -> np.ndarray:
    """Return the mean of F1 over the classes that are predicted or labels."""
    right, predicted, labels = np.split(sums, 3, axis=-1)
    each = _divide(2 * right, predicted + labels)
    return _divide(np.nansum(each, axis=-1), np.isfinite(each).sum(axis=-1))


def _f1_micro_terms(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([part.sum(axis=1) for part in np.split(_class_terms(predicted, labels), 3, axis=1)], axis=1)


def _share_score(of: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the score that divides the right ones by the count at `of`, and is 0 where the other counts alone are."""

    def score(sums: np.ndarray) -> np.ndarray:
        return np.where(sums.max(axis=-1) > 0, np.nan_to_num(_divide(sums[..., 0], sums[..., of])), np.nan)

    return score


def _matthews_terms(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return [1, right, one-hot prediction, one-hot label]."""
    classes = np.arange(max(predicted.max(initial=1), labels.max(initial=1)) + 1)
    return np.concatenate(
        [mean_terms(predicted == labels), predicted[:, None] == classes, labels[:, None] == classes], axis=1
    )


def _matthews_score(sums: np.ndarray) -> np.ndarray:
    # Gorodkin 2004: the covariance of one-hot predictions and labels, over both deviations.
    count, right, (predicted, labels) = sums[..., 0], sums[..., 1], np.split(sums[..., 2:], 2, axis=-1)
    covariance = right * count - (predicted * labels).sum(-1)
    of_predicted, of_labels = (count**2 - (part**2).sum(-1) for part in (predicted, labels))
    score = np.where(of_predicted > 0, _divide(covariance, np.sqrt(of_predicted * of_labels)), 0.0)
    return np.where(of_labels > 0, score, np.nan)


def _pearson_terms(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    # A shift and a scale change no correlation, and keep the sums of squares from cancellation.
    x, y = (_standardize(values.astype(np.float64)) for values in (predicted, labels))
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _standardize(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() if np.ptp(values) > 0 else 1.0) if len(values) else values


def _pearson_score(sums: np.ndarray) -> np.ndarray:
    count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    of_x, of_y = (
        np.where(count * square - total**2 > NO_VARIANCE * count * square, count * square - total**2, 0)
        for total, square in ((x, xx), (y, yy))
    )
    return _divide(count * xy - x * y, np.sqrt(of_x * of_y))


# Spearman's correlation is missing: the ranks of a resampled set are no sums.
METRIC_SUMS = {
    "accuracy": MetricSums(_accuracy_terms, mean_score),
    "f1": MetricSums(_f1_terms, _f1_score),  # of class 1
    "f1_macro": MetricSums(_class_terms, _f1_macro_score),
    "f1_micro": MetricSums(_f1_micro_terms, _f1_score),
    "matthews": MetricSums(_matthews_terms, _matthews_score),
    "pearson": MetricSums(_pearson_terms, _pearson_score),
}

# Of sums of `entities.count_tags`.
TAG_SCORES = {"f1": _f1_score, "precision": _share_score(1), "recall": _share_score(2), "accuracy": _share_score(1)}
