"""Scores by their official definitions: GLUE's (Wang et al. 2019, section 2) through scikit-learn and scipy, SQuAD's by the rules of its own script."""

from __future__ import annotations

import collections
import math
import re
import string
from collections.abc import Callable

import numpy as np

PUNCTUATION = str.maketrans("", "", string.punctuation)


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted))


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def score(predicted: np.ndarray, labels: np.ndarray) -> float:
        import scipy.stats

        if np.ptp(predicted) == 0 or np.ptp(labels) == 0:  # a constant correlates with nothing; scipy says nan
            return 0.0
        return float(getattr(scipy.stats, name)(predicted, labels)[0])

    return score


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predicted, labels: float((predicted == labels).mean()),
    "f1": _f1,  # of class 1
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}


def scores(names: tuple[str, ...], outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """outputs: [examples, classes], or [examples, 1] for a number; labels: [examples]. Scores by name, as shares (not per cent)."""
    predicted = outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    return {name: METRICS[name](predicted, labels) for name in names}


def normalised(answer: str) -> str:
    """Lower case, without punctuation, articles and extra white space: SQuAD's evaluation script."""
    answer = answer.lower().translate(PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def exact_match(answer: str, golds: list[str]) -> float:
    """1 where the normalised answer is one of `golds` (none: no answer is right), else 0."""
    return float(any(normalised(answer) == normalised(gold) for gold in golds or [""]))


def overlap_f1(answer: str, golds: list[str]) -> float:
    """The best F1 of shared words with one of `golds`; without words on one side, 1 where the other has none either."""
    return max(_overlap(normalised(answer).split(), normalised(gold).split()) for gold in golds or [""])


def _overlap(words: list[str], gold: list[str]) -> float:
    if not words or not gold:
        return float(words == gold)
    shared = sum((collections.Counter(words) & collections.Counter(gold)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def best_threshold(score: list[float], answerable: list[bool], no_answer: list[float]) -> tuple[float, float]:
    """(best mean score, threshold): a question whose `no_answer` is above the threshold is answered with nothing.

    score: of the answer that is not nothing, a question. answerable: whether it has one: nothing scores 1 where it has none.
    Source: SQuAD 2.0's evaluation script, find_best_thresh.
    """
    total = best = float(sum(not has for has in answerable))  # nothing is said to anybody
    threshold = -math.inf
    for i in sorted(range(len(score)), key=lambda i: no_answer[i]):
        total += score[i] if answerable[i] else -1.0
        if total > best:
            best, threshold = total, no_answer[i]
    return best / len(score), threshold
