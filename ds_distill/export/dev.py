"""The score of a fine-tuned folder on labelled examples, whatever runs it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ds_distill.console import say
from ds_distill.errors import UserError
from ds_distill.export.compare import progress_over
from ds_distill.export.runtimes import Runner
from ds_distill.export.source import Source
from ds_distill.models.families import INPUTS
from ds_distill.tasks.catalog import LENGTH_KEY, TASKS, Task, plain
from ds_distill.tasks.examples import KINDS, kind_of, read_examples, rows_of
from ds_distill.tasks.metrics import scores
from ds_distill.tasks.squad import LENGTH, answers_of, questions_in, spans_of, squad_scores


def dev_score(source: Source, run: Runner, file: Path, what: str, batch: int = 8) -> dict[str, float]:
    """{metric: score}: the first metric of the task that the folder was fine-tuned on; where config.json names none, accuracy, or Pearson's
    correlation of one number.

    file: of a classifier examples as finetune reads them, in the task's columns where config.json names a task, else with a column `label` and one or
    two of text; of a model that answers questions SQuAD's JSON. An example has as many tokens as it had in fine-tuning, if the folder says so.
    Raises UserError for other files, and for a folder with neither head.
    """
    if source.head == "question-answering":
        return _squad_score(source, run, file, what, batch)
    if source.head != "classification":
        raise UserError(f"--data: {source.folder} has the head {source.head}; labelled examples are for a classification or question-answering head")
    config = source.model.config
    trained_on = plain(getattr(config, "finetuning_task", None))
    task = next((task for task in TASKS.values() if plain(task.name) == trained_on), None)
    texts, labels = labelled(file, task)
    if task and set(task.labels) <= config.label2id.keys():  # which may have them in another order
        labels = np.array([config.label2id[name] for name in task.labels])[labels] if task.labels else labels
    elif labels.dtype.kind not in "iuf":
        unknown = next((label for label in labels if label not in config.label2id), None)
        if unknown is not None:
            raise UserError(f"--data {file}: label {str(unknown)!r} is none of the model's ({', '.join(config.label2id)})")
        labels = np.array([config.label2id[label] for label in labels])
    _check_labels(file, labels, config.num_labels)
    found = []
    for start in progress_over(list(range(0, len(labels), batch)), what):
        padded = source.tokenizer(*[column[start : start + batch] for column in texts], truncation=True, padding=True, return_tensors="np",
                                  max_length=_length(source, source.positions))  # fmt: skip
        found.append(run({name: padded[name].astype(np.int64) for name in source.inputs})[0])
    logits = np.concatenate(found)
    return scores((task.metrics[0] if task else "pearson" if logits.shape[-1] == 1 else "accuracy",), logits, labels)


def _check_labels(file: Path, labels: np.ndarray, outputs: int) -> None:
    """UserError for a label that a model of so many outputs cannot have."""
    fits = np.isfinite(labels) if outputs == 1 else np.isin(labels, np.arange(outputs))
    if not fits.all():
        wanted = "a number" if outputs == 1 else f"0 to {outputs - 1}, its classes"
        raise UserError(f"--data {file}: label {labels[~fits][0]} of example {int(np.argmin(fits)) + 1}: the model's are {wanted}")


def _squad_score(source: Source, run: Runner, file: Path, what: str, batch: int) -> dict[str, float]:
    if not file.is_file():
        raise UserError(f"--data {file}: no such file; give SQuAD's JSON")
    questions = questions_in(TASKS["squad_v2"], file)  # 1.1 as well: all of its questions have answers
    spans = spans_of(questions, source.tokenizer, _length(source, LENGTH))
    starts, ends = [], []
    for first in progress_over(list(range(0, len(spans.question), batch)), what):
        rows = [{name: spans.inputs[name][row] for name in INPUTS} for row in range(first, min(first + batch, len(spans.question)))]
        padded = source.tokenizer.pad(rows, return_tensors="np")
        outputs = run({name: np.asarray(padded[name]).astype(np.int64) for name in source.inputs})
        starts, ends = starts + list(outputs[0]), ends + list(outputs[1])
    return {"f1": squad_scores(questions, answers_of(questions, spans, starts, ends))["f1"]}


def _length(source: Source, otherwise: int) -> int:
    return min(getattr(source.model.config, LENGTH_KEY, None) or otherwise, source.positions)


def labelled(file: Path, task: Task | None = None) -> tuple[list[list[str]], np.ndarray]:
    """(one or two columns of text, labels: ids where a task says what they are) of a file of examples."""
    if not file.is_file():
        raise UserError(f"--data {file}: no such file; give examples with a column `label` and one or two of text")
    if kind_of(file) is None:
        raise UserError(f"--data {file}: one of {', '.join(KINDS)} (.gz and .zst too) is needed")
    if task and not task.spans:
        found = read_examples(task, file)
        return found.texts, np.array(found.labels)
    rows = [row for _, row in rows_of(file)]
    if not rows:
        raise UserError(f"--data {file}: no examples in it")
    # csv and tsv have numbers as text: an index is not read; nor are a label's names beside it
    names = [name for name, value in rows[0].items() if isinstance(value, str) and not name.startswith("label")]
    names = [name for name in names if not all(re.fullmatch(r"[-+\d.e]*", str(row.get(name, ""))) for row in rows)]
    if "label" not in rows[0] or not 1 <= len(names) <= 2:
        raise UserError(f"--data {file}: columns {', '.join(rows[0])}: needs `label` and one or two of text")
    whole = [row for row in rows if "label" in row and all(isinstance(row.get(name), str) for name in names)]
    if len(whole) < len(rows):
        raise UserError(f"--data {file}: {len(rows) - len(whole)} of its {len(rows)} rows lack one of {', '.join(names)} (text) and label")
    say(f"--data {file}: read as text: {', '.join(names)}")
    return [[row[name] for row in rows] for name in names], _numbers([row["label"] for row in rows])


def _numbers(labels: list) -> np.ndarray:
    """As numbers where all are: csv and tsv have them as text."""
    try:
        found = np.array([float(label) for label in labels])
    except (TypeError, ValueError):
        return np.array([str(label) for label in labels])
    return found.astype(np.int64) if (found == found.round()).all() else found
