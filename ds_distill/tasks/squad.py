"""SQuAD's questions: where they are read, and which are left out or refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds_distill.data.charset import replace_surrogates
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.examples import (
    UNREADABLE,
    get_file_suffix,
    load_from_hub,
    open_text,
    read_rows,
    split_files,
)
from ds_distill.utils.console import log_if_significant
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.git_lfs import check_not_lfs_pointer

NEEDED = "a question needs id, question, context and answers, which hold as many `text` as `answer_start`"
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
