"""Augmented copies of the training examples of a task of one or two texts, or of labeled words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from ds_distill.augment.words import WordProposer
from ds_distill.tasks.catalog import Task

RE_PAIRED = 0.25  # share of the copies of a pair that get the second text of another pair
WORDS, OTHER_PAIR = "words", "words, second text of another pair"


def copy_examples(
    task: Task, texts: Sequence[Sequence], first: int, proposer: WordProposer, copies: int, seed: int
) -> Iterator[dict]:
    """Yield the augmented copies of some training examples, without labels; a copy equal to its source is left out.

    A copy depends on the seed, the example, the copy's number and the other examples that are given.

    Args:
        task: The task.
        texts: A list of texts for each column of the task; of labeled words a list of sentences, which are lists of
            words.
        first: The number of the first of these examples in the training set, from 0.
        proposer: What proposes words.
        copies: The number of copies of each example.
        seed: The seed.
    """
    sentences = texts[0]
    if task.tokens:
        texts = [[" ".join(sentence) for sentence in sentences]]
    words = [proposer.propose(column) for column in texts]
    spellings = proposer.spellings
    for row in range(len(texts[0])):
        for copy in range(1, copies + 1):
            random = np.random.default_rng([seed, first + row, copy])
            rows, how = [row] * len(words), WORDS
            others = len(texts[0]) - 1
            if len(words) == 2 and random.random() < RE_PAIRED and others:
                rows[1], how = (row + 1 + int(random.integers(others))) % len(texts[0]), OTHER_PAIR
            made = [column[number].replace(random, spellings) for column, number in zip(words, rows, strict=True)]
            if made != [column[row] for column in texts]:
                values = [_split_like(sentences[row], made[0])] if task.tokens else made
                yield {
                    "source": first + row,
                    "copy": copy,
                    "how": how,
                    "texts": dict(zip(task.texts, values, strict=True)),
                }


def _split_like(sentence: Sequence[str], text: str) -> list[str]:
    """Return the words of a copy of a sentence, in which replaced words, which have no spaces, stand for others."""
    parts = iter(text.split(" "))
    return [" ".join(islice(parts, word.count(" ") + 1)) for word in sentence]
