"""The data of a task, read once, and its encoding by one tokenizer at one length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.features import Features, encode_features, is_per_token
from ds_distill.finetune.token_features import WordTokens, encode_sentences, keep_labeled
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.examples import Examples, load_examples
from ds_distill.tasks.own_examples import load_own
from ds_distill.tasks.squad import Question, Questions, load_questions
from ds_distill.tasks.squad_spans import LENGTH, Spans, find_unplaced, make_spans
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError

# of a dev set: labels, for SQuAD (questions, spans), or words with their tokens
Gold = np.ndarray | tuple[Questions, Spans] | WordTokens
EncodedDev = dict[str, tuple[Features, Gold]]  # the dev sets, by the names of their splits

SENTENCES = 128  # tokens of an example that is not from SQuAD, unless finetune.max_length differs


@dataclass
class Data:
    """The data of a task.

    Args:
        train: The training set.
        dev: The dev sets, by the names of their splits.
        fingerprint: A fingerprint of all of the data.
    """

    task: Task
    train: Examples | Questions
    dev: dict[str, Examples | Questions]
    fingerprint: str

    @property
    def counts(self) -> dict[str, int]:
        """The number of examples in the training set and in the first dev set."""
        return {"train": len(self.train), "dev": len(next(iter(self.dev.values())))}

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """How much of the files was left out, by set and cause."""
        return {
            get_split_name(split): dict(part.left_out)
            for split, part in {"train": self.train, **self.dev}.items()
            if part.left_out
        }


def get_split_name(split: str) -> str:
    """Return the name of a split in a summary: train, dev, and dev_mismatched for MNLI's second."""
    return split if split == "train" else "dev_mismatched" if split.endswith("mismatched") else "dev"


def load_data(task: Task, folder: str | None) -> Data:
    """Load the data of a task, which then has the names of its labels.

    Raises:
        UserError: If a split is missing or a file has a mistake. The message has the file and the
            line.
    """
    with spinner(f"reading {task.name}"):
        return _load(task, folder)


def _load(task: Task, folder: str | None) -> Data:
    if task.own:
        task, own_train, own_dev = load_own(task)
        named = json.dumps([task.labels, task.metrics])
        fingerprint = digest(task.name, named, len(own_train), *(_rows(part) for part in (own_train, own_dev)))
        return Data(task, own_train, {task.validation[0]: own_dev}, fingerprint)
    load: Callable[[Task, str, str | None], Examples | Questions] = load_questions if task.spans else load_examples
    train, dev = load(task, "train", folder), {split: load(task, split, folder) for split in task.validation}
    if task.spans and not any(question.answers for question in cast(Questions, train)):
        raise UserError(
            f"--task {task.name}: no question of the training set has an answer; give a training set with answers"
        )
    if task.labels and (absent := {*range(len(task.labels))} - _labels_in(cast(Examples, train))):
        raise UserError(
            f"--task {task.name}: no example of the training set is labeled {_name_labels(task, absent)}; give a "
            "training set with examples of each label, or describe these data as a task of your own in a YAML file"
        )
    rows = (
        row
        for part in (train, *dev.values())
        for row in (map(vars, cast(Questions, part)) if task.spans else _rows(cast(Examples, part)))
    )
    return Data(task, train, dev, digest(task.name, len(train), rows))


def _rows(part: Examples) -> Iterator[tuple]:
    return zip(*part.texts, part.labels, strict=True)


@dataclass
class EncodedTask:
    """The data of a task as a model reads it.

    Args:
        dev: By the name of the split, the features and their gold.
        length: The most tokens of an example, or of a question's span.
        unplaced: How many questions are not trained on, because no span holds their answer.
    """

    train: Features
    dev: EncodedDev
    length: int
    unplaced: int = 0

    @property
    def parts(self) -> dict[str, Features]:
        """All features, by the names that a summary has for their sets."""
        return {"train": self.train} | {get_split_name(split): features for split, (features, _) in self.dev.items()}


def encode_sets(
    data: Data, tokenizer: PreTrainedTokenizerBase, settings: FinetuneConfig, positions: int
) -> EncodedTask:
    """Encode the data of a task with a tokenizer.

    Args:
        data: The data.
        tokenizer: The tokenizer.
        settings: The length and the number of training examples are read from it.
        positions: The most tokens that the models read.
    """
    with spinner(f"tokenizing {data.task.name}"):
        return _encode(data, tokenizer, settings, positions)


def _encode(data: Data, tokenizer: PreTrainedTokenizerBase, settings: FinetuneConfig, positions: int) -> EncodedTask:
    most, length = (
        settings.max_train_samples or None,
        min(settings.max_length or (LENGTH if data.task.spans else SENTENCES), positions),
    )
    dev = dev_sets(data, tokenizer, length)
    train = data.train[:most]
    if data.task.spans:
        questions = cast(list[Question], train)
        spans = make_spans(questions, tokenizer, length)
        lost = find_unplaced(questions, spans)
        spans = spans.without(lost)
        if not spans.question:
            raise UserError(
                f"--task {data.task.name}: no part of a context, of {length} tokens, contains an answer; raise "
                "finetune.max_length"
            )
        return EncodedTask(
            Features(spans.inputs, {"start_positions": spans.starts, "end_positions": spans.ends}, cut=spans.cut),
            dev,
            length,
            len(lost),
        )
    all_examples, examples = cast(Examples, data.train), cast(Examples, train)
    if absent := _labels_in(all_examples) - _labels_in(examples) if data.task.labels and most else ():
        raise UserError(
            f"finetune.max_train_samples = {most}: none of the first {most} training examples of {data.task.name} is "
            f"labeled {_name_labels(data.task, absent)}; use more examples (0 means all), or put the training examples "
            "in random order, since a file that is sorted by label begins with a few of them"
        )
    if data.task.tokens:
        return EncodedTask(keep_labeled(encode_sentences(examples, tokenizer, length)[0]), dev, length)
    return EncodedTask(encode_features(examples, tokenizer, length), dev, length)


def _name_labels(task: Task, labels: set[int]) -> str:
    named = [task.labels[label] for label in sorted(labels)]
    others = f" or one of {len(named) - 3} more labels" if len(named) > 4 else ""
    return ", ".join(named[:3] if others else named) + others


def _labels_in(examples: Examples) -> set[int]:
    """Return the ids of the labels that examples have, of any kind."""
    if not isinstance(examples.labels[0], list):
        return set(examples.labels)
    if is_per_token(examples.labels[0]):
        return {label for row in examples.labels for label in row}
    return {number for row in examples.labels for number, given in enumerate(row) if given}


def dev_sets(data: Data, tokenizer: PreTrainedTokenizerBase, length: int) -> EncodedDev:
    """Return EncodedTask.dev: the dev sets encoded with `tokenizer`, in at most `length` tokens."""
    if not data.task.spans:
        examples = cast(dict[str, Examples], data.dev)
        if data.task.tokens:
            return {split: encode_sentences(part, tokenizer, length) for split, part in examples.items()}
        return {
            split: (encode_features(part, tokenizer, length), np.array(part.labels)) for split, part in examples.items()
        }
    questions_by_split = cast(dict[str, Questions], data.dev)
    encoded = {
        split: (questions, make_spans(questions, tokenizer, length)) for split, questions in questions_by_split.items()
    }
    return {
        split: (Features(spans.inputs, {}, cut=spans.cut), (questions, spans))
        for split, (questions, spans) in encoded.items()
    }


def digest(*values: object) -> str:
    """Return a digest of values; the items of an iterator are digested one by one."""
    hashed = hashlib.sha256()
    for value in values:
        for row in value if isinstance(value, Iterator) else (value,):
            hashed.update(json.dumps(row).encode() + b"\n")
    return hashed.hexdigest()[:16]
