"""SQuAD: its questions, the spans of their contexts and the answers that spans yield.

Contexts are divided into overlapping spans that a model can read, and answers are put together from
them (Devlin et al. 2019, section 4.2).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ds_distill.data.charset import replace_surrogates
from ds_distill.models.families import INPUTS
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.examples import (
    UNREADABLE,
    get_file_suffix,
    load_from_hub,
    open_text,
    read_rows,
    split_files,
)
from ds_distill.tasks.metrics import Measured, best_threshold, exact_match, overlap_f1
from ds_distill.utils.console import log_if_significant
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.git_lfs import check_not_lfs_pointer

# LENGTH is in tokens of a span. STRIDE is how many of them the next span repeats, as in
# transformers' run_qa; the authors' code moves on by 128.
LENGTH, STRIDE = (
    384,
    128,
)
NEEDED = "a question needs id, question, context and answers, which hold as many `text` as `answer_start`"
LONGEST_QUESTION, LONGEST_ANSWER, N_BEST = 64, 30, 20


MISPLACED = "questions whose answer is not at its answer_start"
MANY = 0.25  # a share of misplaced answers that can be no accident


@dataclass(frozen=True)
class Question:
    """A question with its context.

    Args:
        answers: (text, its first character in the context) for each answer; empty where the
            question has none.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    @property
    def references(self) -> list[str]:
        """The texts of the answers."""
        return [text for text, _ in self.answers]


class Questions(list[Question]):
    """The questions of a split; `left_out` has how many are missing from it, by cause."""

    def __init__(self, questions: Iterable[Question] = (), left_out: Counter[str] | None = None):
        super().__init__(questions)
        self.left_out = left_out or Counter()


@dataclass
class Spans:
    """The spans of questions, one feature per row.

    Args:
        inputs: The model's inputs by name, as int64 lists of unequal length.
        cut: How many questions were truncated.
        question: The number of the row's question.
        offsets: The characters of each token, None outside of the context.
        starts: The first token of the answer; 0, the first token, where the span does not hold the
            answer.
        ends: The last token of the answer; 0 in the same case.
    """

    inputs: dict[str, list[list[int]]]
    cut: int = 0
    question: list[int] = field(default_factory=list)
    offsets: list[list[tuple[int, int] | None]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def without(self, questions: set[int]) -> Spans:
        """Return the spans of all other questions."""
        rows = [row for row, number in enumerate(self.question) if number not in questions]
        inputs = {name: [values[row] for row in rows] for name, values in self.inputs.items()}
        return Spans(
            inputs,
            self.cut,
            [self.question[row] for row in rows],
            [self.offsets[row] for row in rows],
            [self.starts[row] for row in rows],
            [self.ends[row] for row in rows],
        )


def load_questions(task: Task, split: str, data: str | None) -> Questions:
    """Load a split of SQuAD, as `load_examples` does for other tasks.

    The source is an official JSON file, or the hub's columns in any other kind of file. Misplaced
    answers, which are not where their answer_start points, are left out and counted if they are
    few.

    Raises:
        UserError: If a part is missing, a question of 1.1 has no answer, or more than a quarter of
            the questions have misplaced answers. The message has the file and the question's id.
    """
    if data:
        [file] = split_files(expand_user(data), split)
        return questions_in(task, file)
    return _questions(
        task, ((f"row {number}", row) for number, row in enumerate(load_from_hub(task, split))), task.hub[0]
    )


def questions_in(task: Task, file: Path) -> Questions:
    """Return all questions of a file; the errors are those of `load_questions`."""
    if get_file_suffix(file) in (".csv", ".tsv"):
        raise UserError(
            f"{file}: answers are lists, which {get_file_suffix(file)} files cannot hold; give SQuAD's own "
            "JSON, jsonl or "
            "parquet"
        )
    return _questions(
        task,
        read_official(file)
        if get_file_suffix(file) == ".json"
        else ((f"line {line}", row) for line, row in read_rows(file)),
        str(file),
    )


def _questions(task: Task, entries: Iterable[tuple[str, dict]], source: str) -> Questions:
    questions, faults = Questions(), []
    for place, entry in entries:
        where = f"{source}, {place}, question {entry.get('id')!r}"
        try:
            answers = entry["answers"]
            pairs = (
                zip(answers["text"], answers["answer_start"], strict=True)
                if isinstance(answers, dict)
                else ((answer["text"], answer["answer_start"]) for answer in answers)
            )
            question = Question(
                str(entry["id"]),
                entry["question"],
                entry["context"],
                () if entry.get("is_impossible") else tuple(pairs),
            )
        except KeyError as error:
            raise UserError(f"{where}: {error} is missing; {NEEDED}") from None
        except (TypeError, ValueError):
            raise UserError(f"{where}: answers is {str(entry['answers'])[:80]!r}; {NEEDED}") from None
        if task.name == "squad" and not question.answers:
            raise UserError(f"{where}: the question has no answer, as in SQuAD 2.0; use --task squad_v2")
        question = check_question(question, where)
        if fault := find_misplaced_answer(question):
            faults.append(f"{where}: {fault}")
        else:
            questions.append(question)
    if not questions and not faults:
        raise UserError(f"{source}: the file contains no questions")
    if faults:
        count, total = len(faults), len(faults) + len(questions)
        if count > MANY * total:
            raise UserError(
                f"{faults[0]}; {count} of {total} questions have such answers, too many to skip; correct answer_start"
            )
        questions.left_out[MISPLACED] = count
        first = faults[0].removeprefix(f"{source}, ")
        log_if_significant(count, total, f"{source}: {count} of {total} {MISPLACED} are skipped; the first is {first}")
    return questions


def read_official(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield (place, question with its context) from an official SQuAD JSON."""
    check_not_lfs_pointer(file)
    try:
        with open_text(file) as stream:
            articles = json.load(stream)["data"]
        for article in articles:
            for number, paragraph in enumerate(article["paragraphs"], 1):
                for entry in paragraph["qas"]:
                    yield (
                        f"{article.get('title', 'an article')!r}, paragraph {number}",
                        {"answers": [], **entry, "context": paragraph["context"]},
                    )
    except (*UNREADABLE, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not in SQuAD's JSON format ({error!r}), which has `data`, a list of articles with `paragraphs` "
            "of `context` and `qas`"
        ) from error


def check_question(question: Question, where: str) -> Question:
    """Return the question with whole numbers as the places of its answers.

    Where pandas met a gap in a column, it turned them into floats.
    """
    if not (isinstance(question.question, str) and isinstance(question.context, str)):
        raise UserError(f"{where}: the question or the context is not a string")
    answers = []
    given: tuple[tuple[Any, Any], ...] = question.answers
    for text, start in given:
        start = int(start) if isinstance(start, float) and start.is_integer() else start
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise UserError(
                f"{where}: an answer needs its text and the number of its first character, not {text!r} and {start!r}"
            )
        if not text or start < 0:
            raise UserError(
                f"{where}: the answer {text!r} at character {start} is not valid; for a question without an answer, "
                "give empty lists of `text` and `answer_start`"
            )
        answers.append((replace_surrogates(text), start))
    texts = {name: replace_surrogates(getattr(question, name)) for name in ("question", "context")}
    return replace(question, answers=tuple(answers), **texts)


def find_misplaced_answer(question: Question) -> str:
    """Return what is wrong with the first answer that is not where its answer_start points.

    The text is empty where all answers are in place.
    """
    for text, start in question.answers:
        if (actual := question.context[start : start + len(text)]) != text:
            return f"the answer {text!r} is not at character {start} of its context, which has {actual!r} there"
    return ""


def make_spans(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, length: int = LENGTH, stride: int = STRIDE
) -> Spans:
    """Return the spans of every question: the question itself with each part of its context.

    The question is truncated to 64 tokens. A span has at most `length` tokens, question included,
    and the parts overlap by `stride`.
    """
    question_texts = [q.question.lstrip() for q in questions]
    alone = tokenizer(
        question_texts,
        add_special_tokens=False,
        truncation=True,
        max_length=min(LONGEST_QUESTION, length // 2),
        return_offsets_mapping=True,
    )
    cut = sum(bool(encoding.overflowing) for encoding in alone.encodings)
    # A tokenizer may truncate on the left.
    question_texts = [
        text[offsets[0][0] : offsets[-1][1]] if offsets else text
        for text, offsets in zip(question_texts, alone["offset_mapping"], strict=True)
    ]
    room = length - max(map(len, alone["input_ids"])) - 4  # special tokens: three for BERT, four for RoBERTa
    if room < 8:
        raise UserError(
            f"{length} tokens leave no room for a context next to its question; raise finetune.max_length, or give a "
            "model with more positions"
        )
    encoded = tokenizer(
        question_texts,
        [q.context for q in questions],
        truncation="only_second",
        max_length=length,
        stride=min(stride, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        return_attention_mask=True,
    )
    spans = Spans({name: encoded[name] for name in INPUTS}, cut, list(encoded["overflow_to_sample_mapping"]))
    for row in range(len(spans.question)):
        pairs = zip(encoded["offset_mapping"][row], encoded.sequence_ids(row), strict=True)
        spans.offsets.append([tuple(pair) if kind == 1 else None for pair, kind in pairs])
    covered = [(len(q.context), 0) for q in questions]  # from the first to the last character that has a token
    for number, offsets in zip(spans.question, spans.offsets, strict=True):
        pairs_with_text = [pair for pair in offsets if pair and pair[0] < pair[1]] or [covered[number]]
        covered[number] = (
            min(covered[number][0], pairs_with_text[0][0]),
            max(covered[number][1], pairs_with_text[-1][1]),
        )
    for number, offsets in zip(spans.question, spans.offsets, strict=True):
        start, end = _place(questions[number], offsets, *covered[number])
        spans.starts.append(start)
        spans.ends.append(end)
    return spans


def find_unplaced(questions: list[Question], spans: Spans) -> set[int]:
    """Return the numbers of the questions that have an answer which no span holds.

    Either no token stands for that answer, or it is longer than a span.
    """
    placed = {
        number
        for number, start, end in zip(spans.question, spans.starts, spans.ends, strict=True)
        if (start, end) != (0, 0)
    }
    return {number for number, question in enumerate(questions) if question.answers} - placed


def _place(
    question: Question, offsets: list[tuple[int, int] | None], covered_from: int, covered_to: int
) -> tuple[int, int]:
    """Return the first and the last token that share a character with the first answer.

    The result is (0, 0) unless this span holds all of the answer, apart from characters before the
    first and after the last token of the context. One character may be several tokens: in
    byte-level BPE each of its bytes, with the same offsets.
    """
    if not question.answers:
        return 0, 0
    text, first = question.answers[0]
    first, last = max(first, covered_from), min(first + len(text), covered_to)
    while first < last and question.context[first].isspace():
        first += 1
    while first < last and question.context[last - 1].isspace():
        last -= 1
    inside = [(i, *pair) for i, pair in enumerate(offsets) if pair is not None and pair[0] < pair[1]]
    if first == last or not inside or inside[0][1] > first or inside[-1][2] < last:
        return 0, 0
    shared = [i for i, start, stop in inside if stop > first and start < last]
    return (shared[0], shared[-1]) if shared else (0, 0)


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
