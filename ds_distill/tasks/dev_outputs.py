"""A fine-tuned model's answers to its dev sets, kept example by example.

With them, two models can be compared on the same examples. They stand beside the answers of the
constant answer: the one that scores best on the training labels without reading an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from ds_distill.tasks.catalog import Task
from ds_distill.tasks.metric_sums import METRIC_SUMS, TAG_SCORES, mean_score, mean_terms
from ds_distill.utils.errors import UserError

FILE = "dev_outputs.safetensors"
DEV = "dev"  # the first dev set, by which a task is ranked
CORRELATIONS = ("matthews", "pearson", "spearman")


@dataclass
class DevOutputs:
    """The answers of one run and of the constant answer.

    Attributes:
        data: The fingerprint of the task's data.
        arrays: By name, one row per example, in the order of the file. SET is dev, or
            dev_mismatched for MNLI's second dev set. SET.predicted and SET.labels are [examples],
            class ids or numbers, or [examples, classes] of 0 and 1 for any number of labels, and
            SET.METRIC.constant is the constant answer, [1] or [classes]. For SQuAD, SET.METRIC and
            SET.METRIC.constant are the scores of each question, [examples]. For tags of words,
            SET.counts and SET.METRIC.constant are those of `entities.count_tags`, [examples, 3].
    """

    data: str
    arrays: dict[str, np.ndarray]

    def save(self, file: Path) -> None:
        """Write the outputs, whole or not at all."""
        partial = file.with_suffix(".partial")
        partial.write_bytes(save(self.arrays, metadata={"data": self.data}))  # save_file keeps it from other users
        partial.replace(file)

    @classmethod
    def load(cls, file: Path) -> DevOutputs:
        """Read the outputs of a file; raise UserError where it cannot be read."""
        try:
            with safe_open(file, framework="numpy") as stored:
                return cls(stored.metadata()["data"], {name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
        except Exception as error:  # The library has errors of its own, of no common class.
            raise UserError(f"{file}: cannot be read ({error}); remove it, and the model is scored again") from error

    def terms(self, metric: str, *, constant: bool = False, part: str = DEV) -> np.ndarray | None:
        """Return the terms of a metric, fp64 [examples, terms], see `metric_sums`; None where it has none.

        Args:
            metric: The name of the metric.
            constant: Whether they are those of the constant answer.
            part: The dev set.
        """
        if (scores := self.arrays.get(f"{part}.{metric}")) is not None:
            return mean_terms(self.arrays[f"{part}.{metric}.constant"] if constant else scores)
        if (counts := self.arrays.get(f"{part}.counts")) is not None:
            return self.arrays[f"{part}.{metric}.constant"] if constant else counts
        predicted, labels = self.arrays.get(f"{part}.predicted"), self.arrays.get(f"{part}.labels")
        if metric not in METRIC_SUMS or predicted is None or labels is None:
            return None
        if constant:
            answer = self.arrays[f"{part}.{metric}.constant"]
            predicted = np.broadcast_to(answer if labels.ndim > 1 else answer[0], labels.shape)
        return METRIC_SUMS[metric].terms(predicted, labels)

    def score(self, metric: str, sums: np.ndarray) -> np.ndarray:
        """Return the scores that belong to sums of `terms`, [..., terms]."""
        if f"{DEV}.counts" in self.arrays:
            return TAG_SCORES[metric](sums)
        return mean_score(sums) if f"{DEV}.{metric}" in self.arrays else METRIC_SUMS[metric].score(sums)

    def score_constant(self) -> dict[str, float]:
        """Return the constant answer's score by metric, with the names that a run's scores have.

        A constant correlates with nothing, which counts as 0.
        """
        scores = {}
        for name in self.arrays:
            if not name.endswith(".constant"):
                continue
            part, metric, _ = name.split(".")
            value = np.nan
            if (terms := self.terms(metric, constant=True, part=part)) is not None:
                value = float(self.score(metric, terms.sum(0)))
            if np.isnan(value) and metric in CORRELATIONS:
                value = 0.0
            if not np.isnan(value):
                scores[metric if part == DEV else f"{part.removeprefix(f'{DEV}_')}_{metric}"] = value
        return scores


def find_constant_answer(task: Task, metric: str, labels: Sequence) -> np.ndarray:
    """Return the answer that scores best on the training labels if it is given to every example, [1].

    It is the mean for numbers. Of classes, for accuracy and macro F1 it is the most frequent one, for F1 the
    class that the score is of; the more frequent one where two score alike. For any number of labels it is a set of
    them, [classes] of 0 and 1.
    """
    values = np.asarray(labels)
    if task.regression:
        return np.array([values.mean()])
    if values.ndim > 1:
        return _find_constant_set(metric, values)
    if metric == "f1_macro":  # with the most frequent class, since all others have 0 whatever the answer
        metric = "accuracy"
    terms, score = METRIC_SUMS[metric]
    candidates = range(len(task.labels))
    scores = [float(score(terms(np.full(len(values), answer), values).sum(0))) for answer in candidates]
    best = max(candidates, key=lambda answer: (np.nan_to_num(scores[answer], nan=-1), (values == answer).sum()))
    return np.array([best])


def _find_constant_set(metric: str, labels: np.ndarray) -> np.ndarray:
    """Return the set of labels that scores best if it is given to every example: 0 or 1 for each class.

    For accuracy it is the most frequent set. For micro F1 it has the most frequent labels, as many as score best, and
    for macro F1 all labels that there are.
    """
    if metric == "accuracy":
        sets, counts = np.unique(labels, axis=0, return_counts=True)
        return sets[counts.argmax()]
    counts = labels.sum(axis=0)
    if metric == "f1_macro":
        return (counts > 0).astype(labels.dtype)
    order = np.argsort(-counts, kind="stable")
    sizes = np.arange(1, len(order) + 1)
    scores = 2 * counts[order].cumsum() / (sizes * len(labels) + counts.sum())
    answer = np.zeros_like(counts)
    answer[order[: 1 + scores.argmax()]] = 1
    return answer.astype(labels.dtype)
