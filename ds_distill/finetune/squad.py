"""SQuAD: contexts longer than a model reads, cut into overlapping spans, and answers put together again (Devlin et al. 2019, section 4.2)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ds_distill.errors import UserError
from ds_distill.finetune.examples import opened
from ds_distill.finetune.metrics import best_threshold, exact_match, overlap_f1

LENGTH, STRIDE = 384, 128  # the paper's and its authors' code
LONGEST_ANSWER, N_BEST = 30, 20


@dataclass(frozen=True)
class Question:
    """answers: (text, its first character in the context); none where the question has no answer."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    @property
    def golds(self) -> list[str]:
        return [text for text, _ in self.answers]


@dataclass
class Spans:
    """One feature a row: inputs by name, int64 lists of unequal length; the question it is of; the characters of each token, None outside of the
    context; first and last token of the answer, 0 and 0 (the first token) where the span does not hold it."""

    inputs: dict[str, list[list[int]]]
    question: list[int] = field(default_factory=list)
    offsets: list[list[tuple[int, int] | None]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


def read_squad(file: Path) -> list[Question]:
    """An official SQuAD JSON (1.1 or 2.0). Raises UserError, with the question's id, for an answer that is not where it is said to be."""
    with opened(file) as stream:
        try:
            articles = json.load(stream)["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: not SQuAD's JSON ({error!r}); it has `data`, a list of articles with `paragraphs`") from error
    found = []
    for article in articles:
        for number, paragraph in enumerate(article.get("paragraphs", []), 1):
            for entry in paragraph["qas"]:
                where = f"{file}, {article.get('title', 'an article')!r}, paragraph {number}, question {entry.get('id')!r}"
                answers = () if entry.get("is_impossible") else tuple((a["text"], a["answer_start"]) for a in entry.get("answers", []))
                found.append(checked(Question(entry["id"], entry["question"], paragraph["context"], answers), where))
    if not found:
        raise UserError(f"{file}: no questions in it")
    return found


def checked(question: Question, where: str) -> Question:
    for text, start in question.answers:
        if question.context[start : start + len(text)] != text:
            there = question.context[start : start + len(text)]
            raise UserError(f"{where}: the answer {text!r} is not at character {start} of its context, where there is {there!r}")
    return question


def spans_of(questions: list[Question], tokenizer: PreTrainedTokenizerBase, length: int = LENGTH, stride: int = STRIDE) -> Spans:
    """Every question with every part of its context: parts of at most `length` tokens, question included, that overlap by `stride`."""
    longest = max(len(ids) for ids in tokenizer([q.question for q in questions], add_special_tokens=False)["input_ids"])
    room = length - longest - 4  # special tokens: three of BERT's, four of RoBERTa's
    if room < 8:
        raise UserError(f"a question of {longest} tokens leaves no room for its context in {length}; leave it out, or give a model with more positions")
    stride = min(stride, room // 2)
    encoded = tokenizer([q.question.lstrip() for q in questions], [q.context for q in questions], truncation="only_second", max_length=length,
                        stride=stride, return_overflowing_tokens=True, return_offsets_mapping=True)  # fmt: skip
    spans = Spans({name: encoded[name] for name in tokenizer.model_input_names if name in encoded})
    for row, number in enumerate(encoded["overflow_to_sample_mapping"]):
        sequence = encoded.sequence_ids(row)
        offsets = [tuple(pair) if kind == 1 else None for pair, kind in zip(encoded["offset_mapping"][row], sequence, strict=True)]
        start, end = _place(questions[number], offsets)
        spans.question.append(number)
        spans.offsets.append(offsets)
        spans.starts.append(start)
        spans.ends.append(end)
    return spans


def _place(question: Question, offsets: list[tuple[int, int] | None]) -> tuple[int, int]:
    """First and last token of the first answer, (0, 0) unless all of it is in this span."""
    if not question.answers:
        return 0, 0
    text, first = question.answers[0]
    last = first + len(text)
    inside = [i for i, pair in enumerate(offsets) if pair is not None]
    if not inside or offsets[inside[0]][0] > first or offsets[inside[-1]][1] < last:
        return 0, 0
    start = max(i for i in inside if offsets[i][0] <= first)
    end = min(i for i in inside if offsets[i][1] >= last)
    return (start, end) if start <= end else (0, 0)


@dataclass
class Answer:
    """best: (score, text) of answers that are not nothing, best first, the n best; nothing: score of the first token, lowest of all spans."""

    best: list[tuple[float, str]] = field(default_factory=list)
    nothing: float = float("inf")

    @property
    def text(self) -> str:
        return self.best[0][1] if self.best else ""

    @property
    def odds_of_nothing(self) -> float:
        return self.nothing - self.best[0][0] if self.best else float("inf")


def answers_of(questions: list[Question], spans: Spans, starts: list[np.ndarray], ends: list[np.ndarray]) -> list[Answer]:
    """starts, ends: logits of each span's tokens (at least as many as it has). The best pairs start ≤ end of at most 30 tokens, within the context."""
    found = [Answer() for _ in questions]
    for row, number in enumerate(spans.question):
        offsets, answer = spans.offsets[row], found[number]
        inside = np.array([i for i, pair in enumerate(offsets) if pair is not None and pair[1] > pair[0]], dtype=int)
        answer.nothing = min(answer.nothing, float(starts[row][0] + ends[row][0]))
        if not len(inside):
            continue
        first = inside[np.argsort(-starts[row][inside], kind="stable")[:N_BEST]]
        last = inside[np.argsort(-ends[row][inside], kind="stable")[:N_BEST]]
        pairs = [(float(starts[row][i] + ends[row][j]), i, j) for i in first for j in last if i <= j < i + LONGEST_ANSWER]
        context = questions[number].context
        answer.best += [(score, context[offsets[i][0] : offsets[j][1]]) for score, i, j in sorted(pairs, reverse=True)[:N_BEST]]
    for answer in found:
        answer.best = sorted(answer.best, key=lambda pair: -pair[0])[:N_BEST]
    return found


def squad_scores(questions: list[Question], answers: list[Answer]) -> dict[str, float]:
    """exact_match and f1, shares of all questions. Where some have no answer (2.0), the threshold below which nothing is said is chosen best for each,
    as the official script's best_exact and best_f1; `threshold` is that of f1, has_answer_f1 and no_answer_f1 are the parts at it."""
    exact = [exact_match(a.text, q.golds) if q.answers else 0.0 for q, a in zip(questions, answers, strict=True)]
    f1 = [overlap_f1(a.text, q.golds) if q.answers else 0.0 for q, a in zip(questions, answers, strict=True)]
    answerable = [bool(q.answers) for q in questions]
    if all(answerable):
        return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}
    odds = [a.odds_of_nothing for a in answers]
    best_exact, _ = best_threshold(exact, answerable, odds)
    best_f1, threshold = best_threshold(f1, answerable, odds)
    threshold = threshold if np.isfinite(threshold) else min(odds) - 1  # nothing is said to anybody
    said = [odd <= threshold for odd in odds]
    parts = {
        True: [s * score for s, score, has in zip(said, f1, answerable, strict=True) if has],
        False: [not s for s, has in zip(said, answerable, strict=True) if not has],
    }
    return {"f1": best_f1, "exact_match": best_exact, "threshold": threshold, "has_answer_f1": float(np.mean(parts[True])) if parts[True] else 0.0,
            "no_answer_f1": float(np.mean(parts[False]))}  # fmt: skip
