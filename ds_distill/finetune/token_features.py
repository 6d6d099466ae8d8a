"""The features of sentences with a label per word: a word is labeled, and read, at its first token."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from transformers import PreTrainedTokenizerBase

from ds_distill.finetune.features import Features
from ds_distill.models.families import INPUTS
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.entities import tag_scores
from ds_distill.tasks.examples import Examples
from ds_distill.tasks.metrics import Measured
from ds_distill.tasks.tagged import OUTSIDE

IGNORED = -100  # the label of tokens that have none, as in torch's cross entropy


@dataclass
class WordTokens:
    """The words of sentences and their tokens.

    Args:
        tags: The class id of each word, by sentence.
        first: The first token of each word, by sentence; -1 for a word that has none, because its
            sentence is truncated before it or its text has no token.
    """

    tags: list[list[int]]
    first: list[list[int]]


def encode_sentences(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[Features, WordTokens]:
    """Encode sentences, truncated to `length` tokens, with a label at the first token of each word.

    The words are joined by spaces, so that a model reads what it reads of a text in use. Other
    tokens have the label -100.
    """
    sentences: list[list[str]] = examples.texts[0]
    encoded = tokenizer(
        [" ".join(words) for words in sentences],
        truncation=True,
        max_length=length,
        return_token_type_ids=True,
        return_attention_mask=True,
        return_offsets_mapping=True,
    )
    first = [
        find_first_tokens(words, offsets) for words, offsets in zip(sentences, encoded["offset_mapping"], strict=True)
    ]
    labels = [[IGNORED] * len(ids) for ids in encoded["input_ids"]]
    for row, tags, places in zip(labels, examples.labels, first, strict=True):
        for tag, place in zip(tags, places, strict=True):
            if place >= 0:
                row[place] = tag
    cut = sum(bool(encoding.overflowing) for encoding in encoded.encodings)
    features = Features({name: encoded[name] for name in INPUTS}, {"labels": labels}, cut=cut)
    return features, WordTokens(examples.labels, first)


def find_first_tokens(words: list[str], offsets: list[tuple[int, int]]) -> list[int]:
    """Return the first token of each of the words that a text joins by spaces, or -1.

    Args:
        words: The words.
        offsets: The first character of each token and the one after its last; equal for special
            tokens.
    """
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    first = [-1] * len(words)
    for token, (start, stop) in enumerate(offsets):
        # A token may begin with the space before its word, so its last character decides.
        if start < stop and first[word := bisect_right(starts, stop - 1) - 1] < 0:
            first[word] = token
    return first


def keep_labeled(features: Features) -> Features:
    """Return the rows that have a labeled token; without one a row's loss would be 0 of 0."""
    rows = [row for row, labels in enumerate(features.labels["labels"]) if any(label != IGNORED for label in labels)]
    if len(rows) == len(features):
        return features
    return Features(
        {name: [values[row] for row in rows] for name, values in features.inputs.items()},
        {"labels": [features.labels["labels"][row] for row in rows]},
        cut=features.cut,
    )


def score_tags(task: Task, outputs: list[np.ndarray], words: WordTokens) -> Measured:
    """Return the task's scores, see `name_tags`."""
    return tag_scores(task.metrics, *name_tags(task, outputs, words))


def name_tags(task: Task, outputs: list[np.ndarray], words: WordTokens) -> tuple[list[list[str]], list[list[str]]]:
    """Return the predicted tags and the right ones of each sentence's words.

    A word without a token counts as outside of any entity, or as wrong.

    Args:
        task: The task.
        outputs: [classes, tokens] of each sentence.
        words: The words and their tokens.
    """
    absent = task.labels.index(OUTSIDE) if task.entities else -1  # a model may have its labels in another order
    names = [*task.labels, ""]  # the last for a word without a token
    predicted = [
        [int(values[:, place].argmax()) if place >= 0 else absent for place in places]
        for values, places in zip(outputs, words.first, strict=True)
    ]
    named, right = ([[names[tag] for tag in tags] for tags in rows] for rows in (predicted, words.tags))
    return named, right
