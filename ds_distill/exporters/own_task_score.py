"""The examples of a user's own task, or of tagged sentences, as an exported model is scored on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from ds_distill.exporters.model import ExportModel
from ds_distill.exporters.task_score import DevSet, Outputs, describe, get_length
from ds_distill.finetune.token_features import encode_sentences, score_tags
from ds_distill.models.inputs import encode_rows
from ds_distill.tasks.catalog import OwnData, Task
from ds_distill.tasks.examples import get_file_suffix
from ds_distill.tasks.metrics import Measured, scores
from ds_distill.tasks.own_examples import load_own, number_labels, read_own, renumber_labels
from ds_distill.tasks.own_task import TAGGED_FORMATS, is_task_file, load_task
from ds_distill.utils.console import log_if_significant
from ds_distill.utils.errors import UserError, expand_user


def is_own_data(source: ExportModel, data: str) -> bool:
    """Return whether `data` is a task's YAML file, or holds tagged sentences for a model that labels words."""
    return is_task_file(data) or source.head == "token-classification"


def own_dev_set(source: ExportModel, data: str) -> DevSet:
    """Return the dev set of a task's YAML file, or a file of tagged sentences, for a fine-tuned model.

    The score is the task's first metric; for a file of tagged sentences, F1 of entities if the
    model's labels are those of the BIO scheme, else accuracy.

    Raises:
        UserError: The model has other labels or another head than the task, or a file has a mistake.
    """
    task = _task(source, data)
    if _kind(task) != source.head:
        raise UserError(
            f"--data {data}: a task for a model with the head {_kind(task)}, but {source.folder} has the head "
            f"{source.head}; give the task that it was fine-tuned on"
        )
    config = source.model.config
    is_number = config.num_labels == 1 and config.problem_type in (None, "regression")
    is_multi_label = config.problem_type == "multi_label_classification"
    if not task.tokens and (task.regression, task.multi_label) != (is_number, is_multi_label):
        wanted = "regression" if is_number else "multi-label" if is_multi_label else "single-label"
        raise UserError(
            f"--data {data}: {source.folder} was fine-tuned on a {wanted} task, and this is none; give the task of the "
            "model"
        )
    own = cast(OwnData, task.own)
    file = own.dev or own.train
    names = cast(dict[int, str], source.model.config.id2label)
    labels = tuple(str(names[number]) for number in sorted(names))
    if is_task_file(data):
        task, _, examples = load_own(task)
        if not task.regression and sorted(task.labels) != sorted(labels):
            raise UserError(
                f"--data {data}: its labels are {', '.join(task.labels)}, but those of {source.folder} are "
                f"{', '.join(labels)}; give the task that the model was fine-tuned on"
            )
        if not task.regression and task.labels != labels:
            examples = renumber_labels(examples, task, labels)
            task = replace(task, labels=labels)
    else:
        examples = number_labels(task, read_own(task, file))
    length, metrics = get_length(source), task.metrics[:1]
    judge: Callable[[Outputs], Measured]
    if task.tokens:
        features, words = encode_sentences(examples, source.reader, length)
        encoded, truncated = features.inputs, features.cut

        def judge(outputs: Outputs) -> Measured:
            return score_tags(replace(task, metrics=metrics), [row.T for batch in outputs for row in batch[0]], words)
    else:
        encoded, truncated = encode_rows(source.reader, examples.texts, length)
        gold = np.array(examples.labels)

        def judge(outputs: Outputs) -> Measured:
            return scores(metrics, np.concatenate([batch[0] for batch in outputs]), gold)

    count = len(examples)
    log_if_significant(
        truncated,
        count,
        f"--data {data}: {truncated:,} of {count:,} examples are longer than {length} tokens and are truncated",
    )
    rows = [{name: encoded[name][row] for name in source.inputs} for row in range(count)]
    about = describe(source, file, list(task.texts), rows, count, length, truncated, examples.left_out)
    return DevSet(source, rows, judge, about)


def _task(source: ExportModel, data: str) -> Task:
    """Return the task that `data` describes, or one for a file of tagged sentences with the model's labels."""
    if is_task_file(data):
        return load_task(expand_user(data))
    file = expand_user(data)
    if not file.is_file() or not get_file_suffix(file, (*TAGGED_FORMATS, ".jsonl", ".json", ".parquet")):
        raise UserError(
            f"--data {data}: not a file of tagged sentences ({', '.join(TAGGED_FORMATS)} or jsonl); give the model's "
            "dev set, or its task's YAML file"
        )
    names = cast(dict[int, str], source.model.config.id2label)
    labels = tuple(str(names[number]) for number in sorted(names))
    is_bio = all(name == "O" or name[:2] in ("B-", "I-") for name in labels)
    own = OwnData(f"--data {data}", file, file, label=("tags",))
    return Task(
        Path(data).name, ("tokens",), labels, ("f1",) if is_bio else ("accuracy",), ("", None), tokens=True, own=own
    )


def _kind(task: Task) -> str:
    return "token-classification" if task.tokens else "classification"
