"""An encoder with the head for a task.

The head is a new one on a pretrained encoder, or the one that was fine-tuned for the task.
"""

from __future__ import annotations

from typing import cast

import torch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from ds_distill.models.families import get_family_by_type
from ds_distill.models.folder import ModelFolder, find_model_folder, join_names
from ds_distill.models.loading import load_model
from ds_distill.tasks.catalog import Task, normalize_name
from ds_distill.tasks.labels import match_classes
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError

HEADS = {
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}


def load_for_task(path: str, task: Task, option: str, *, tuned: bool, dropout: float = -1.0) -> PreTrainedModel:
    """Load a model for a task, in fp32 on the CPU.

    Args:
        path: The model's folder or name.
        task: The task.
        option: The option of the command line, for messages.
        tuned: Whether the folder must have the head, fine-tuned on this very task. Otherwise the
            head is new (from torch's generator), or the one of a folder that was fine-tuned on the
            task.
        dropout: Hidden and attention dropout, and dropout before the head; below 0, the config's
            own.

    Raises:
        UserError: If the folder has no such model, one of another task or with other labels, or not
            all of its weights.
    """
    folder = find_model_folder(path, f"--{option}").check_files()
    config = folder.config
    has_head = _check_head(folder, task, tuned)
    if dropout >= 0:
        get_family_by_type(config.model_type).set_dropout(config, dropout, heads=True)
    order = None
    if task.spans:
        config.num_labels = 2
    else:
        order = _match_label_order(folder, task, tuned) if has_head else None
        _set_labels(config, task)
    config.finetuning_task = task.name
    model, lacking = load_model(HEADS[_head(task)], folder, config)
    encoder = model.base_model_prefix + "."
    # A pooler is part of BERT's head for sentences; masked-LM models come without one.
    missing = [key for key in lacking if has_head or (key.startswith(encoder) and ".pooler." not in key)]
    if missing:
        raise UserError(f"{folder.given}: the weights lack {join_names(missing)}; give a complete checkpoint")
    if order:
        _reorder(model, order)
    return model


def _head(task: Task) -> str:
    """Return the ending of the class of a model with the head that a task needs; a key of HEADS."""
    return (
        "ForQuestionAnswering"
        if task.spans
        else "ForTokenClassification"
        if task.tokens
        else "ForSequenceClassification"
    )


def _remedy(task: Task, tuned: bool) -> str:
    return f"give a model fine-tuned on {task.name}" if tuned else "give the pretrained model that it came from"


def _check_head(folder: ModelFolder, task: Task, tuned: bool) -> bool:
    """Return whether the model has a head for this kind of task.

    Raises:
        UserError: It lacks one that it needs, has one for another kind of task, or was fine-tuned on
            another task.
    """
    kind = (folder.config.architectures or [""])[0]
    trained_task = getattr(folder.config, "finetuning_task", None)
    has_head = kind.endswith(_head(task))
    if tuned and not has_head:
        raise UserError(
            f"{folder.given}: {with_article(kind or 'model without a head')}; task-specific distillation needs a "
            f"teacher that was fine-tuned on {task.name}"
        )
    if not has_head and kind.endswith(tuple(HEADS)):
        raise UserError(
            f"{folder.given}: {with_article(kind)}, which was fine-tuned for another kind of task than {task.name}; "
            f"{_remedy(task, tuned)}"
        )
    if trained_task and normalize_name(trained_task) != normalize_name(task.name):
        raise UserError(f"{folder.given}: was fine-tuned on {trained_task}, not on {task.name}; {_remedy(task, tuned)}")
    return has_head


def _match_label_order(folder: ModelFolder, task: Task, tuned: bool) -> list[int] | None:
    """Return which output of the model's head is each label of the task; None where they are in the task's order.

    Raises:
        UserError: The head has other labels.
    """
    labels = cast(dict[int, str], folder.config.id2label)
    model_labels = [str(labels[i]) for i in sorted(labels)]
    classes = match_classes(model_labels, task.labels)  # Numbers are the hub's ids.
    if len(model_labels) != _num_outputs(task) or (task.labels and classes is None):
        raise UserError(
            f"{folder.given}: its labels are {', '.join(model_labels)}, but those of {task.name} are "
            f"{', '.join(task.labels) or 'one number'}; {_remedy(task, tuned)}"
        )
    in_order = list(range(_num_outputs(task)))
    return [classes.index(i) for i in in_order] if classes and classes != in_order else None


def _set_labels(config: PretrainedConfig, task: Task) -> None:
    """Give a config the task's labels and kind of problem."""
    config.num_labels = _num_outputs(task)
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {name: i for i, name in enumerate(task.labels)}
    if not task.tokens:
        config.problem_type = (
            "regression"
            if task.regression
            else "multi_label_classification"
            if task.multi_label
            else "single_label_classification"
        )


def _num_outputs(task: Task) -> int:
    return 1 if task.regression else len(task.labels)


@torch.no_grad()
def _reorder(model: PreTrainedModel, order: list[int]) -> None:
    """Make output order[i] output i; in every family the last linear layer gives the labels."""
    last = [part for part in model.modules() if isinstance(part, torch.nn.Linear)][-1]
    for parameter in (last.weight, last.bias):
        parameter.copy_(parameter[order])
