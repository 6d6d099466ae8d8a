"""QNLI made from SQuAD: does a sentence of a paragraph hold the answer to a question on it?

GLUE's QNLI pairs each question with sentences of its paragraph and leaves out pairs that share few
words (Wang et al. 2019, section 2). Here, each question gives one example of each label: the
sentence with its answer, and of the other sentences the one that shares most words with the
question, so that the words alone tell little.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.metrics import normalize_answer
from ds_distill.tasks.squad import Question, Questions

HOLDS, LACKS = get_task("qnli").labels
UNANSWERABLE, NO_OTHER = "questions without an answer", "questions without a sentence that lacks the answer"

# A sentence ends at a mark, with closing quotes and brackets, or at the end of a line, where the
# next word begins as a sentence may.
SENTENCE_END = re.compile(r"""(?P<mark>[.!?])?["'”’)\]]*(?P<gap>(?(mark)\s+|\s*\n\s*))(?=["'“‘(\[]*[^\W_a-z])""")
# After these, a period ends no sentence; nor does it after an initial, as in J. R. Smith.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev gen col lt sgt capt gov sen rep st mt ft jr sr vs no op vol fig ca cf approx e.g i.e".split()
)
INITIAL = re.compile(r"[A-HJ-Zb-z]|.*\.[A-Z]")  # also the last one of U.S.; I is a pronoun or a number more often


class Pair(NamedTuple):
    """An example of QNLI, with the id of its question in SQuAD."""

    id: str
    question: str
    sentence: str
    label: str


def split_sentences(text: str, answers: Iterable[tuple[str, int]] = ()) -> list[tuple[int, int]]:
    """Return the first character of each sentence of an English text and the one after its last.

    No sentence ends within one of `answers`, (text, first character). White space around sentences
    belongs to none.
    """
    whole = [(start, start + len(answer)) for answer, start in answers]
    sentences, start = [], len(text) - len(text.lstrip())
    for found in SENTENCE_END.finditer(text):
        end, following = found.span("gap")
        if found["mark"] == ".":
            word = text[start : found.start()].rpartition(" ")[2].lstrip("\"'“‘([")
            if word.casefold() in ABBREVIATIONS or INITIAL.fullmatch(word):
                continue
        if end > start and not any(first < following and end < last for first, last in whole):
            sentences.append((start, end))
            start = following
    end = len(text.rstrip())
    return [*sentences, (start, end)] if end > start else sentences


def make_pairs(questions: Sequence[Question]) -> tuple[list[Pair], Counter[str]]:
    """Return the examples of QNLI that questions give, and how many questions give none or one, by cause.

    An answerable question gives its sentence, which holds the first of its answers, and of the
    sentences that hold none of them, at its marked place or elsewhere, the one that shares most
    words with it. Words count by the
    logarithm of how rare they are among the sentences of all paragraphs. Where a paragraph has no
    other sentence, another question gives one more, again those that share most, so that both
    labels have as many examples. The order is that of a digest, so that the first examples are of
    all paragraphs; it is a pure function of the questions.
    """
    left_out: Counter[str] = Counter()
    answers: dict[str, set[tuple[str, int]]] = {}  # of all questions on a paragraph
    for question in questions:
        answers.setdefault(question.context, set()).update(question.answers)
    paragraphs = {text: split_sentences(text, sorted(marked)) for text, marked in answers.items()}
    weight = _weigh(text[start:end] for text, sentences in paragraphs.items() for start, end in sentences)
    positives: dict[tuple[str, str], Pair] = {}
    ranked: list[list[tuple[float, Pair]]] = []
    for question in questions:
        if not question.answers:
            left_out[UNANSWERABLE] += 1
            continue
        sentences = paragraphs[question.context]
        holding = [_find(sentences, start) for _, start in question.answers]
        texts = [question.context[start:end] for start, end in sentences]
        right = texts[holding[0]]
        positives.setdefault((question.question, right), Pair(question.id, question.question, right, HOLDS))
        wanted = _words(question.question)
        answered = [text for text, _ in question.answers]
        others = {
            text: None
            for number, text in enumerate(texts)
            if number not in holding and text != right and not any(_has(text, answer) for answer in answered)
        }
        shared = [(sum(weight[word] for word in sorted(wanted & _words(text))), text) for text in others]
        shared.sort(key=lambda entry: -entry[0])
        ranked.append([(share, Pair(question.id, question.question, text, LACKS)) for share, text in shared])
        left_out[NO_OTHER] += not shared
    negatives: dict[tuple[str, str], Pair] = {}
    further = sorted((entry for others in ranked for entry in others[1:]), key=lambda entry: -entry[0])
    for _, pair in [*(others[0] for others in ranked if others), *further]:
        if len(negatives) < len(positives) and (pair.question, pair.sentence) not in positives:
            negatives.setdefault((pair.question, pair.sentence), pair)
    return sorted([*positives.values(), *negatives.values()], key=_digest), +left_out


def count_shared_paragraphs(one: Questions, other: Questions) -> int:
    """Return how many paragraphs two splits have in common."""
    return len({question.context for question in one} & {question.context for question in other})


def _weigh(sentences: Iterable[str]) -> Counter[str]:
    """Return the weight of each word, which is 0 for a word of every sentence; unknown words have none."""
    counts, total = Counter[str](), 0
    for sentence in sentences:
        counts.update(_words(sentence))
        total += 1
    return Counter({word: math.log(total / count) for word, count in counts.items()})  # type: ignore[dict-item]


def _words(text: str) -> set[str]:
    return set(normalize_answer(text).split())


def _has(sentence: str, answer: str) -> bool:
    """Return whether a sentence has the words of an answer, in their order, as SQuAD's script compares words."""
    words = normalize_answer(answer)
    return f" {words} " in f" {normalize_answer(sentence)} " if words else answer.strip() in sentence


def _find(sentences: list[tuple[int, int]], character: int) -> int:
    """Return the number of the sentence that holds a character, or of the one that follows it."""
    return next(number for number, (_, end) in enumerate(sentences) if character < end)


def _digest(pair: Pair) -> str:
    return hashlib.sha256("\0".join(pair).encode(errors="surrogatepass")).hexdigest()
