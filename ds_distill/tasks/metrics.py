"""Scores by their official definitions.

GLUE's (Wang et al. 2019, section 2) come from scikit-learn and scipy, and SQuAD's follow the rules
of its own script.
"""

from __future__ import annotations

import collections
import math
import re
import statistics
import string
from collections.abc import Callable, Iterable
from typing import cast

import numpy as np

PUNCTUATION = str.maketrans("", "", string.punctuation)


Measured = dict[str, float | None]  # None means not measured, because there was nothing to measure it on.


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float | None:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(labels) == 0:  # With only one class there is nothing to tell apart.
        return None
    return float(matthews_corrcoef(labels, predicted))  # 0 where one class is always predicted, as in GLUE


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float | None:
    from sklearn.metrics import f1_score

    if not (predicted == 1).any() and not (labels == 1).any():  # This would be 0 of 0.
        return None
    return float(f1_score(labels == 1, predicted == 1))


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float | None]:
    def score(predicted: np.ndarray, labels: np.ndarray) -> float | None:
        import scipy.stats

        # A constant correlates with nothing; scipy returns NaN.
        if len(labels) < 2 or np.ptp(predicted) == 0 or np.ptp(labels) == 0:
            return None
        correlation = float(getattr(scipy.stats, name)(predicted, labels)[0])
        return correlation if math.isfinite(correlation) else None

    return score


def _averaged_f1(average: str) -> Callable[[np.ndarray, np.ndarray], float | None]:
    def score(predicted: np.ndarray, labels: np.ndarray) -> float | None:
        from sklearn.metrics import f1_score

        # A label that is neither given nor predicted has no score; scikit-learn would count it as 0.
        used = None
        if labels.ndim == 2:
            used = np.flatnonzero((predicted != 0).any(axis=0) | (labels != 0).any(axis=0))
            if not len(used):
                return None
            # One column alone would be taken for two classes: an empty one beside it keeps it a label.
            labels, predicted = (np.pad(values, ((0, 0), (0, 1))) for values in (labels, predicted))
        return float(f1_score(labels, predicted, labels=used, average=average, zero_division=0))

    return score


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    # of several labels: the share of examples on which all are right
    "accuracy": lambda predicted, labels: float((predicted == labels).reshape(len(labels), -1).all(axis=1).mean()),
    "f1": _f1,  # of class 1
    "f1_macro": _averaged_f1("macro"),
    "f1_micro": _averaged_f1("micro"),
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}


def predict_labels(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return what a model's outputs predict, in the form of `labels`.

    Of any number of labels, one is predicted where its output is above 0, which is a probability above one half.

    Args:
        outputs: As of `scores`.
        labels: As of `scores`.
    """
    if labels.ndim == 2:
        return (outputs > 0).astype(labels.dtype)
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)


def scores(names: tuple[str, ...], outputs: np.ndarray, labels: np.ndarray) -> Measured:
    """Return the scores by name, as shares and not in percent.

    Args:
        names: The names of the metrics.
        outputs: [examples, classes], or [examples, 1] for a number.
        labels: [examples], or [examples, classes] of 0 and 1 for any number of labels.
    """
    predicted = predict_labels(outputs, labels)
    return {name: METRICS[name](predicted, labels) if len(labels) else None for name in names}


def median(values: Iterable[float | None]) -> float | None:
    """Return the median, where values that were not measured rank lowest.

    It is None where the median falls on such a value.
    """
    ranked = sorted(values, key=rank)
    middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
    return None if None in middle else statistics.mean(cast(list[float], middle))


def rank(score: float | None) -> float:
    """Return the key that a score is ordered by; one that was not measured is below all others."""
    return -math.inf if score is None else score


def normalize_answer(answer: str) -> str:
    """Return an answer in lower case, without punctuation, articles and extra white space.

    Source: SQuAD's evaluation script.
    """
    answer = answer.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def exact_match(answer: str, references: list[str]) -> float:
    """Return 1 where the normalized answer is one of `references`, else 0.

    Without references, the empty answer is right.
    """
    return float(any(normalize_answer(answer) == normalize_answer(gold) for gold in references or [""]))


def overlap_f1(answer: str, references: list[str]) -> float:
    """Return the best F1 of the words that an answer shares with one of `references`.

    Without references, the empty answer is right. An answer of articles and punctuation alone shares no word.
    """
    words = normalize_answer(answer).split()
    if not references:
        return float(not words)
    return max(_overlap(words, normalize_answer(gold).split()) for gold in references)


def _overlap(words: list[str], gold: list[str]) -> float:
    shared = sum((collections.Counter(words) & collections.Counter(gold)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def best_threshold(score: list[float], answerable: list[bool], no_answer: list[float]) -> tuple[float, float]:
    """Return (best mean score, threshold) over all thresholds of `no_answer`.

    A question whose `no_answer` is above the threshold gets the empty answer. The threshold is -inf
    where empty answers to all questions score best.

    Source: SQuAD 2.0's evaluation script, find_best_thresh. Unlike there, questions of equal
    `no_answer` are all answered or all not, as with any threshold.

    Args:
        score: The score of each question's best answer that is not empty.
        answerable: Whether each question has an answer. Where it has none, the empty answer scores
            1.
        no_answer: The odds of the empty answer for each question, infinite where there is no other
            answer.
    """
    total = best = float(sum(not has for has in answerable))  # the score where no question is answered
    threshold, order = (
        -math.inf,
        sorted((i for i in range(len(score)) if no_answer[i] < math.inf), key=lambda i: no_answer[i]),
    )
    for place, i in enumerate(order):
        total += score[i] if answerable[i] else -1.0
        last_of_equals = place + 1 == len(order) or no_answer[order[place + 1]] > no_answer[i]
        if last_of_equals and total > best:
            best, threshold = total, no_answer[i]
    return best / len(score), threshold
