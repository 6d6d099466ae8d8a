"""Augmented copies of questions about paragraphs, and questions made of a corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ds_distill.augment import CLOZE
from ds_distill.augment.copies import WORDS
from ds_distill.augment.words import WordProposer
from ds_distill.tasks.squad import Question

MOVED = 0.25  # share of the copies that ask about another paragraph
NEARBY = 5  # paragraphs before and after a question's own, among which another one is chosen
OTHER_PARAGRAPH = "words, another paragraph"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\W\d_a-z])")  # before a letter that is not a small one
# Of a paragraph: the fewest sentences, of which one becomes the question, and the fewest and the most words
SENTENCES, FEWEST_WORDS, MOST_WORDS = 3, 60, 250
SHORTEST_QUESTION = 8  # words
LONGEST_GAP = 5  # words that are taken out of a sentence


def copy_questions(
    questions: Sequence[Question],
    contexts: Sequence[str],
    places: dict[str, int],
    first: int,
    proposer: WordProposer,
    copies: int,
    seed: int,
) -> Iterator[dict]:
    """Yield the augmented copies of some questions, without answers; a copy equal to its source is left out.

    Words of the question are replaced, and some copies ask about another paragraph near the question's own in the
    file, where articles keep their paragraphs together.

    Args:
        questions: The questions.
        contexts: The paragraphs of the training set, each once, in order.
        places: The number of each paragraph in `contexts`.
        first: The number of the first of these questions in the training set, from 0.
        proposer: What proposes words.
        copies: The number of copies of each question.
        seed: The seed.
    """
    words = proposer.propose([question.question for question in questions])
    for row, (question, replaceable) in enumerate(zip(questions, words, strict=True)):
        for copy in range(1, copies + 1):
            random = np.random.default_rng([seed, first + row, copy])
            context, how = question.context, WORDS
            if random.random() < MOVED:
                place = places[context]
                near = [*range(max(0, place - NEARBY), place), *range(place + 1, place + 1 + NEARBY)]
                near = [number for number in near if number < len(contexts)]
                if near:
                    context, how = contexts[int(random.choice(near))], OTHER_PARAGRAPH
            text = replaceable.replace(random, proposer.spellings)
            if (text, context) != (question.question, question.context):
                texts = {"question": text, "context": context}
                yield {"source": question.id, "copy": copy, "how": how, "texts": texts}


def make_cloze_questions(documents: Iterable[str], seed: int) -> Iterator[dict]:
    """Yield questions made of a corpus: a sentence of a paragraph with one to five of its words taken out.

    Args:
        documents: The texts, whose lines are paragraphs.
        seed: The seed.

    Source: Lewis et al. 2019 (Unsupervised question answering by cloze translation), section 2, without the answer.
    """
    number = 0
    for document in documents:
        for paragraph in document.split("\n"):
            if not FEWEST_WORDS <= len(paragraph.split()) <= MOST_WORDS:
                continue
            sentences = [
                sentence.split()
                for sentence in SENTENCE_END.split(paragraph)
                if len(sentence.split()) >= SHORTEST_QUESTION
            ]
            if len(sentences) < SENTENCES:
                continue
            random = np.random.default_rng([seed, number])
            words = sentences[random.integers(len(sentences))]
            gap = int(random.integers(1, LONGEST_GAP + 1))
            start = int(random.integers(len(words) - gap + 1))
            question = " ".join([*words[:start], *words[start + gap :]])
            texts = {"question": question, "context": paragraph}
            yield {"source": f"paragraph {number}", "copy": 1, "how": CLOZE, "texts": texts}
            number += 1
