"""SQuAD: its questions, contexts cut into overlapping spans that a model reads, and answers put together again (Devlin et al. 2019, section 4.2)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ds_distill.models.families import INPUTS
from ds_distill.tasks.examples import (
    UNREADABLE,
    from_hub,
    kind_of,
    opened,
    rows_of,
    split_files,
    without_lone_surrogates,
)
from ds_distill.tasks.metrics import Measured, best_threshold, exact_match, overlap_f1
from ds_distill.tasks.registry import Task
from ds_distill.utils.console import log_share
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.git_lfs import check_not_lfs_pointer

LENGTH, STRIDE = (
    384,
    128,
)  # tokens of a span and, as in transformers' run_qa, that the next one repeats; the authors' code moves on by 128
NEEDED = "it needs id, question, context and answers: their texts and, as many, answer_start"
LONGEST_QUESTION, LONGEST_ANSWER, N_BEST = 64, 30, 20


MISPLACED = "questions whose answer is not at its answer_start"
MANY = 0.25  # share of them that can be no slip


@dataclass(frozen=True)
class Question:
    """answers: (text, its first character in the context); none where the question has no answer."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]

    @property
    def references(self) -> list[str]:
        return [text for text, _ in self.answers]


class Questions(list[Question]):
    """A split's questions; left_out: how many are not in it, by cause."""

    def __init__(self, questions: Iterable[Question] = (), left_out: Counter[str] | None = None):
        super().__init__(questions)
        self.left_out = left_out or Counter()


@dataclass
class Spans:
    """One feature a row: inputs by name, int64 lists of unequal length; the question it is of; the characters of each token, None outside of the
    context; first and last token of the answer, 0 and 0 (the first token) where the span does not hold it. cut: how
    many questions were cut."""

    inputs: dict[str, list[list[int]]]
    cut: int = 0
    question: list[int] = field(default_factory=list)
    offsets: list[list[tuple[int, int] | None]] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def without(self, questions: set[int]) -> Spans:
        """The spans of all other questions."""
        rows = [row for row, number in enumerate(self.question) if number not in questions]
        inputs = {name: [values[row] for row in rows] for name, values in self.inputs.items()}
        return Spans(
            inputs,
            self.cut,
            *([values[row] for row in rows] for values in (self.question, self.offsets, self.starts, self.ends)),
        )


def load_questions(task: Task, split: str, data: str | None) -> Questions:
    """A split of SQuAD, as load_examples: an official JSON file, or the hub's columns in any other kind of file.

    Raises UserError, with the file and the question's id, for a part that is missing, for a question of 1.1 that has no
    answer, and where more than a quarter of the questions have an answer that is not where it is said to be; fewer are
    left out, and counted.
    """
    if data:
        [file] = split_files(expand_user(data), split)
        return questions_in(task, file)
    return _questions(task, ((f"row {number}", row) for number, row in enumerate(from_hub(task, split))), task.hub[0])


def questions_in(task: Task, file: Path) -> Questions:
    """All questions of a file; errors as load_questions'."""
    if kind_of(file) in (".csv", ".tsv"):
        raise UserError(
            f"{file}: answers are lists, which {kind_of(file)} has not; give SQuAD's own JSON, jsonl or parquet"
        )
    return _questions(
        task,
        official(file) if kind_of(file) == ".json" else ((f"line {line}", row) for line, row in rows_of(file)),
        str(file),
    )


def _questions(task: Task, entries: Iterable[tuple[str, dict]], source: str) -> Questions:
    found, faults = Questions(), []
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
            raise UserError(f"{where}: has no answer, as in SQuAD 2.0; use --task squad_v2")
        question = checked(question, where)
        if fault := misplaced(question):
            faults.append(f"{where}: {fault}")
        else:
            found.append(question)
    if not found and not faults:
        raise UserError(f"{source}: no questions in it")
    if faults:
        count, total = len(faults), len(faults) + len(found)
        if count > MANY * total:
            raise UserError(f"{faults[0]}; so are the answers of {count} of {total} questions, too many to leave out")
        found.left_out[MISPLACED] = count
        first = faults[0].removeprefix(f"{source}, ")
        log_share(count, total, f"{source}: {count} of {total} {MISPLACED} are left out, the first: {first}")
    return found


def official(file: Path) -> Iterator[tuple[str, dict]]:
    """(place, question with its context) of an official SQuAD JSON."""
    check_not_lfs_pointer(file)
    try:
        with opened(file) as stream:
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
            f"{file}: not SQuAD's JSON ({error!r}); it has `data`, a list of articles with `paragraphs` of `context` and `qas`"
        ) from error


def checked(question: Question, where: str) -> Question:
    """The question, its answers' places whole numbers: where pandas met a gap in a column, it made floats of them."""
    if not (isinstance(question.question, str) and isinstance(question.context, str)):
        raise UserError(f"{where}: question or context is no text")
    answers = []
    for text, start in question.answers:
        start = int(start) if isinstance(start, float) and start.is_integer() else start
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise UserError(f"{where}: an answer needs a text and its first character, not {text!r} and {start!r}")
        if not text or start < 0:
            raise UserError(
                f"{where}: the answer {text!r} at character {start}; a question without an answer has no answers: an empty list of each"
            )
        answers.append((without_lone_surrogates(text), start))
    texts = {name: without_lone_surrogates(getattr(question, name)) for name in ("question", "context")}
    return replace(question, answers=tuple(answers), **texts)


def misplaced(question: Question) -> str:
    """What is wrong with the first answer that is not where it is said to be; empty where all are."""
    for text, start in question.answers:
        if (there := question.context[start : start + len(text)]) != text:
            return f"the answer {text!r} is not at character {start} of its context, where there is {there!r}"
    return ""


def spans_of(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, length: int = LENGTH, stride: int = STRIDE
) -> Spans:
    """Every question, cut to 64 tokens, with all parts of its context: parts of at most `length` tokens, question included, overlapping by `stride`."""
    asked = [q.question.lstrip() for q in questions]
    alone = tokenizer(
        asked,
        add_special_tokens=False,
        truncation=True,
        max_length=min(LONGEST_QUESTION, length // 2),
        return_offsets_mapping=True,
    )
    cut = sum(bool(encoding.overflowing) for encoding in alone.encodings)
    # a tokenizer may cut at the left
    asked = [
        text[offsets[0][0] : offsets[-1][1]] if offsets else text
        for text, offsets in zip(asked, alone["offset_mapping"], strict=True)
    ]
    room = length - max(map(len, alone["input_ids"])) - 4  # special tokens: three of BERT's, four of RoBERTa's
    if room < 8:
        raise UserError(
            f"{length} tokens leave no room for a context beside its question; give a longer tuning.length, or a model with more positions"
        )
    encoded = tokenizer(
        asked,
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
        found = [pair for pair in offsets if pair and pair[0] < pair[1]] or [covered[number]]
        covered[number] = min(covered[number][0], found[0][0]), max(covered[number][1], found[-1][1])
    for number, offsets in zip(spans.question, spans.offsets, strict=True):
        start, end = _place(questions[number], offsets, *covered[number])
        spans.starts.append(start)
        spans.ends.append(end)
    return spans


def unplaced(questions: list[Question], spans: Spans) -> set[int]:
    """Numbers of the questions that have an answer, which no span holds: no token stands for it, or it is longer than a
    span."""
    placed = {
        number
        for number, start, end in zip(spans.question, spans.starts, spans.ends, strict=True)
        if (start, end) != (0, 0)
    }
    return {number for number, question in enumerate(questions) if question.answers} - placed


def _place(
    question: Question, offsets: list[tuple[int, int] | None], covered_from: int, covered_to: int
) -> tuple[int, int]:
    """First and last token that share a character with the first answer, (0, 0) unless all of the answer is in this
    span, but for what stands before and behind all tokens of the context.

    One character may be several tokens: of byte-level BPE each of its bytes, with the same offsets.
    """
    if not question.answers:
        return 0, 0
    text, first = question.answers[0]
    first, last = max(first, covered_from), min(first + len(text), covered_to)
    while first < last and question.context[first].isspace():
        first += 1
    while first < last and question.context[last - 1].isspace():
        last -= 1
    inside = [i for i, pair in enumerate(offsets) if pair is not None and pair[0] < pair[1]]
    if first == last or not inside or offsets[inside[0]][0] > first or offsets[inside[-1]][1] < last:
        return 0, 0
    shared = [i for i in inside if offsets[i][1] > first and offsets[i][0] < last]
    return (shared[0], shared[-1]) if shared else (0, 0)


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


def postprocess_spans(
    questions: list[Question], spans: Spans, starts: list[np.ndarray], ends: list[np.ndarray]
) -> list[Answer]:
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
        pairs = [
            (float(starts[row][i] + ends[row][j]), i, j) for i in first for j in last if i <= j < i + LONGEST_ANSWER
        ]
        context = questions[number].context
        answer.best += [
            (score, context[offsets[i][0] : offsets[j][1]]) for score, i, j in sorted(pairs, reverse=True)[:N_BEST]
        ]
    for answer in found:
        answer.best = sorted(answer.best, key=lambda pair: -pair[0])[:N_BEST]
    return found


def squad_scores(questions: list[Question], answers: list[Answer]) -> Measured:
    """exact_match and f1, shares of all questions. Where some have no answer (2.0), the threshold below which nothing is said is chosen best for each,
    as the official script's best_exact and best_f1; `threshold` is that of f1, has_answer_f1 and no_answer_f1 are the
    parts at it. None: not measured, since there is no such question."""
    if not questions:
        return {"f1": None, "exact_match": None}
    exact = [exact_match(a.text, q.references) if q.answers else 0.0 for q, a in zip(questions, answers, strict=True)]
    f1 = [overlap_f1(a.text, q.references) if q.answers else 0.0 for q, a in zip(questions, answers, strict=True)]
    answerable = [bool(q.answers) for q in questions]
    if all(answerable):
        return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}
    odds = [a.odds_of_nothing for a in answers]
    best_exact, _ = best_threshold(exact, answerable, odds)
    best_f1, threshold = best_threshold(f1, answerable, odds)
    said = [odd <= threshold for odd in odds]  # where there is nothing but nothing to say, the odds are infinite
    parts = {
        True: [s * score for s, score, has in zip(said, f1, answerable, strict=True) if has],
        False: [not s for s, has in zip(said, answerable, strict=True) if not has],
    }
    finite = [odd for odd in odds if math.isfinite(odd)]
    if not math.isfinite(threshold):  # best where nothing is said to anybody
        threshold = min(finite) - 1 if finite else None
    return {
        "f1": best_f1,
        "exact_match": best_exact,
        "threshold": threshold,
        "has_answer_f1": float(np.mean(parts[True])) if parts[True] else None,
        "no_answer_f1": float(np.mean(parts[False])),
    }
