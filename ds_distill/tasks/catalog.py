"""The tasks: the columns they read, the names of their labels, and their metrics."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from ds_distill.utils.errors import UserError, did_you_mean

# This key stands in a fine-tuned folder's config.json, next to finetuning_task: the most tokens of
# an example.
LENGTH_KEY = "finetuning_length"


@dataclass(frozen=True)
class OwnData:
    """The files of a task that a user describes, or of one whose data is not on the hub.

    Args:
        source: What names the files: the task's YAML file, or the option with its folder.
        train: The training set.
        dev: The dev set; None where a share of the training set is held out.
        dev_share: That share.
        label: The column of the label; or of several labels, the columns of 0 and 1 that are named
            after them.
        separator: What stands between the labels of an example in one column of text.
    """

    source: str
    train: Path
    dev: Path | None
    dev_share: float = 0.0
    label: tuple[str, ...] = ("label",)
    separator: str = ","


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        texts: One or two columns, by the hub's names.
        labels: The names of the classes by id; empty for a number (STS-B's 0 to 5).
        metrics: The metrics. The task is ranked by the first.
        hub: The path and the configuration on the hub; the path is empty where it has none.
        validation: The validation splits, by the names that their figures get.
        glue_columns: The columns of the original GLUE file whose names differ from the hub's, as
            (original, hub).
        headerless_columns: The columns by position, where the original has no header.
        spans: Whether the task predicts spans of a context, instead of a class or a number.
        tokens: Whether the task predicts a label of each word; `texts` then names the column of words.
        multi_label: Whether an example has any number of the labels.
        labels_from_data: Whether the labels are those of the training set, and not known before.
        own: The files of a task that is not on the hub.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    hub: tuple[str, str | None]
    validation: tuple[str, ...] = ("validation",)
    glue_columns: tuple[tuple[str, str], ...] = ()
    headerless_columns: tuple[str, ...] = ()
    spans: bool = False
    tokens: bool = False
    multi_label: bool = False
    labels_from_data: bool = False
    own: OwnData | None = None

    @property
    def regression(self) -> bool:
        """Whether the task predicts a number."""
        return not (self.labels or self.labels_from_data or self.spans)

    @property
    def entities(self) -> bool:
        """Whether the labels of words are entities in the BIO scheme, and not one tag per word."""
        return self.tokens and self.metrics != ("accuracy",)

    @property
    def head(self) -> str:
        """The kind of head of a model for the task."""
        return "question-answering" if self.spans else "token-classification" if self.tokens else "classification"


def _glue(
    name: str, texts: tuple[str, ...], labels: tuple[str, ...], metrics: tuple[str, ...] = ("accuracy",), **kwargs
) -> Task:
    return Task(name, texts, labels, metrics, ("nyu-mll/glue", name), **kwargs)


_ENTAILS = ("entailment", "not_entailment")
TASKS = {
    task.name: task
    for task in (
        _glue(
            "cola",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews",),
            headerless_columns=("source", "label", "mark", "sentence"),
        ),
        _glue("sst2", ("sentence",), ("negative", "positive")),
        _glue(
            "mrpc",
            ("sentence1", "sentence2"),
            ("not_equivalent", "equivalent"),
            ("f1", "accuracy"),
            glue_columns=(("#1 String", "sentence1"), ("#2 String", "sentence2"), ("Quality", "label")),
        ),
        _glue("stsb", ("sentence1", "sentence2"), (), ("pearson", "spearman"), glue_columns=(("score", "label"),)),
        _glue(
            "qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("f1", "accuracy"),
            glue_columns=(("is_duplicate", "label"),),
        ),
        _glue(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            validation=("validation_matched", "validation_mismatched"),
            glue_columns=(("sentence1", "premise"), ("sentence2", "hypothesis"), ("gold_label", "label")),
        ),
        _glue("qnli", ("question", "sentence"), _ENTAILS),
        _glue("rte", ("sentence1", "sentence2"), _ENTAILS),
        _glue("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
        Task("imdb", ("text",), ("negative", "positive"), ("accuracy",), ("stanfordnlp/imdb", None), ("test",)),
        Task("squad", ("question", "context"), (), ("f1", "exact_match"), ("rajpurkar/squad", None), spans=True),
        Task("squad_v2", ("question", "context"), (), ("f1", "exact_match"), ("rajpurkar/squad_v2", None), spans=True),
        Task("ner", ("tokens",), (), ("f1", "precision", "recall"), ("", None), tokens=True, labels_from_data=True),
    )
}

MASKED_LM = "masked-lm"  # the name of masked LM among several tasks, which no task may have there
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")


def normalize_name(name: object) -> str:
    """Return a name in the form in which names are compared, without case, spaces and marks.

    For example, SST-2 becomes sst2. A name of nothing but marks keeps them.
    """
    text = unicodedata.normalize("NFKC", str(name)).casefold()
    return "".join(c for c in text if unicodedata.category(c)[0] in "LMN") or text


OWN_TASK = "for a task with labels of its own, give a YAML file: 'Use your own task' in docs/guide/finetuning.md"


def get_task(name: str, option: str = "--task") -> Task:
    """Return the task of this name.

    Args:
        name: The name.
        option: The option that gave it, for errors. `--tasks`, those of multitask, take no YAML file.

    Raises:
        UserError: If there is none. The message has the nearest name.
    """
    if name not in TASKS:
        raise UserError(
            f"{option} {name}: no such task{did_you_mean(name.lower().replace('-', ''), TASKS, 0.6)}; the tasks are "
            f"{', '.join(TASKS)}{f'; {OWN_TASK}' if option == '--task' else ''}"
        )
    return TASKS[name]
