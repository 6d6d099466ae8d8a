"""Answers to SQuAD's questions, put together from the logits of spans, and their scores.

Sources: Devlin et al. 2019, section 4.2; the official script of SQuAD 2.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ds_distill.tasks.metrics import Measured, best_threshold, exact_match, overlap_f1
from ds_distill.tasks.squad import Question
from ds_distill.tasks.squad_spans import Spans

LONGEST_ANSWER = 30  # tokens
N_BEST = 20


@dataclass
class Answer:
    """The answers to a question.

    Args:
        best: (score, text) of the n best answers that are not empty, best first.
        null_score: The score of the first token, which means no answer: the lowest of all spans.
    """

    best: list[tuple[float, str]] = field(default_factory=list)
    null_score: float = float("inf")

    @property
    def text(self) -> str:
        """The best answer, or the empty text."""
        return self.best[0][1] if self.best else ""

    @property
    def null_odds(self) -> float:
        """The score of the empty answer minus that of the best answer; infinite without one."""
        return self.null_score - self.best[0][0] if self.best else float("inf")


def postprocess_spans(
    questions: list[Question], spans: Spans, starts: list[np.ndarray], ends: list[np.ndarray]
) -> list[Answer]:
    """Return the answers to all questions, from the logits of their spans.

    An answer is one of the best pairs start ≤ end of at most 30 tokens, within the context.

    Args:
        questions: The questions.
        spans: Their spans.
        starts: The start logits of each span's tokens, at least as many as it has tokens.
        ends: The end logits, likewise.
    """
    answers = [Answer() for _ in questions]
    for row, number in enumerate(spans.question):
        offsets, answer = spans.offsets[row], answers[number]
        inside = np.array([i for i, pair in enumerate(offsets) if pair is not None and pair[1] > pair[0]], dtype=int)
        answer.null_score = min(answer.null_score, float(starts[row][0] + ends[row][0]))
        if not len(inside):
            continue
        first = inside[np.argsort(-starts[row][inside], kind="stable")[:N_BEST]]
        last = inside[np.argsort(-ends[row][inside], kind="stable")[:N_BEST]]
        pairs = [
            (float(starts[row][i] + ends[row][j]), i, j) for i in first for j in last if i <= j < i + LONGEST_ANSWER
        ]
        context = questions[number].context
        answer.best += [
            (score, context[offsets[i][0] : offsets[j][1]]) for score, i, j in sorted(pairs, reverse=True)[:N_BEST]
        ]
    for answer in answers:
        answer.best = sorted(answer.best, key=lambda pair: -pair[0])[:N_BEST]
    return answers


def squad_scores(questions: list[Question], answers: list[Answer]) -> Measured:
    """Return exact_match and f1, as shares of all questions.

    Where some questions have no answer (2.0), each metric gets the best threshold above which the
    empty answer is given, as the official script's best_exact and best_f1. Then `threshold` is that
    of f1, and has_answer_f1 and no_answer_f1 are its parts at this threshold. None means not
    measured, because there is no such question.
    """
    if not questions:
        return {"f1": None, "exact_match": None}
    exact = [exact_match(a.text, q.references) if q.answers else 0.0 for q, a in zip(questions, answers, strict=True)]
    f1 = [overlap_f1(a.text, q.references) if q.answers else 0.0 for q, a in zip(questions, answers, strict=True)]
    answerable = [bool(q.answers) for q in questions]
    if all(answerable):
        return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}
    odds = [a.null_odds for a in answers]
    best_exact, _ = best_threshold(exact, answerable, odds)
    threshold: float | None
    best_f1, threshold = best_threshold(f1, answerable, odds)
    # Where the empty answer is the only one, the odds are infinite.
    is_answered = [odd <= threshold for odd in odds]
    parts: dict[bool, list[float]] = {
        True: [answered * score for answered, score, has in zip(is_answered, f1, answerable, strict=True) if has],
        False: [not answered for answered, has in zip(is_answered, answerable, strict=True) if not has],
    }
    finite = [odd for odd in odds if math.isfinite(odd)]
    if not math.isfinite(threshold):  # Empty answers to all questions score best.
        threshold = min(finite) - 1 if finite else None
    return {
        "f1": best_f1,
        "exact_match": best_exact,
        "threshold": threshold,
        "has_answer_f1": float(np.mean(parts[True])) if parts[True] else None,
        "no_answer_f1": float(np.mean(parts[False])),
    }
