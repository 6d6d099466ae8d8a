"""The score of a fine-tuned folder on labeled examples, in any runtime.

It scores the answers that a transformers pipeline of the folder would give.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from ds_distill.data.charset import replace_surrogates
from ds_distill.exporters.model import ExportModel
from ds_distill.exporters.runtimes import Runner
from ds_distill.models.inputs import encode_rows, pad_right
from ds_distill.tasks.catalog import LENGTH_KEY, TASKS, Task, normalize_name
from ds_distill.tasks.columns import named_columns, text_columns
from ds_distill.tasks.examples import (
    FILE_FORMATS,
    check_value,
    get_file_suffix,
    parse_label,
    read_columns,
    read_rows,
)
from ds_distill.tasks.labels import (
    are_numbered_otherwise,
    class_by_name,
    class_by_number,
    match_class,
    match_classes,
    parse_number,
)
from ds_distill.tasks.metrics import METRICS, Measured
from ds_distill.tasks.squad import questions_in
from ds_distill.tasks.squad_answers import postprocess_spans, squad_scores
from ds_distill.tasks.squad_spans import LENGTH, make_spans
from ds_distill.utils.console import log, log_if_significant, progress_over
from ds_distill.utils.errors import UserError

Outputs = list[list[np.ndarray]]  # the model's outputs, batch by batch


@dataclass
class DevSet:
    """Labeled examples as a folder's model reads them.

    Attributes:
        source: The folder.
        rows: The inputs of each example, by name.
        judge: Takes the outputs and returns the scores.
        about: A description of the examples and of what was not read of them: file, columns,
            examples, length (tokens), truncated (examples), unknown (tokens), left_out (rows, by
            cause).
    """

    source: ExportModel
    rows: list[dict[str, list[int]]]
    judge: Callable[[Outputs], Measured]
    about: dict

    def __str__(self) -> str:
        """Return the description for a model card."""
        about = self.about
        truncation = (
            "questions truncated"
            if self.source.head == "question-answering"
            else f"truncated to {about['length']} tokens"
        )
        losses = [f"{about['truncated']:,} {truncation}"] if about["truncated"] else []
        losses += [f"{about['unknown']:,} unknown tokens"] if about["unknown"] else []
        losses += [f"{count:,} {cause} skipped" for cause, count in about["left_out"].items()]
        return ", ".join([f"{about['file']} ({', '.join(about['columns'])}): {about['examples']:,} examples", *losses])

    def score(self, run: Runner, what: str, batch: int = 8) -> Measured:
        """Return {metric: score} of the answers of `run`."""
        outputs: Outputs = []
        for start in progress_over(range(0, len(self.rows), batch), what):
            padded = pad_right(self.rows[start : start + batch], self.source.reader.pad_token_id)
            outputs.append(run({name: padded[name] for name in self.source.inputs}))
        return self.judge(outputs)


def dev_score(source: ExportModel, run: Runner, file: Path, what: str, batch: int = 8) -> Measured:
    """Return the score on a file; see dev_set."""
    return dev_set(source, file).score(run, what, batch)


def dev_set(source: ExportModel, file: str | Path) -> DevSet:
    """Return the examples of a file, which may name its text columns: FILE#COLUMN, or FILE#COLUMN,COLUMN for pairs.

    For a classifier the file holds examples as finetune reads them. They are in the task's columns
    where config.json names a task, else in a column `label` and one or two columns of text
    (tasks.columns finds them). For a model that answers questions the file is SQuAD's JSON. The
    score is the task's first metric. Without a task it is accuracy, or Pearson's correlation for a
    single number. Texts are cut as a pipeline cuts them when it truncates: to the tokenizer's
    model_max_length.

    Raises:
        UserError: The file is of another kind, or the folder has neither head.
    """
    path, columns = named_columns(str(file))
    if source.head == "question-answering":
        return _make_question_set(source, path)
    if source.head != "classification":
        raise UserError(
            f"--data: {source.folder} has the head {source.head}, but labeled examples need a classification or "
            "question-answering head"
        )
    config = source.model.config
    trained_task = normalize_name(getattr(config, "finetuning_task", None))
    task = next((task for task in TASKS.values() if normalize_name(task.name) == trained_task and not task.spans), None)
    examples = load_labeled_examples(path, task, columns)
    metric, judge = _make_judge(source, path, task, examples.labels)
    length = get_length(source)
    encoded, truncated = encode_rows(source.reader, examples.texts, length)
    count = len(examples.labels)
    log_if_significant(
        truncated,
        count,
        f"--data {path}: {truncated:,} of {count:,} examples are longer than {length} tokens and are truncated",
    )
    if (tuned_length := getattr(config, LENGTH_KEY, None) or length) < length:
        num_longer = sum(len(ids) > tuned_length for ids in encoded["input_ids"])
        log_if_significant(
            num_longer,
            count,
            f"--data {path}: {num_longer:,} of {count:,} examples are longer than the {tuned_length} tokens that the "
            f"model was fine-tuned on; they are read up to the tokenizer's limit of {length}",
        )
    rows = [{name: encoded[name][row] for name in source.inputs} for row in range(count)]
    about = describe(source, path, examples.columns, rows, count, length, truncated, examples.left_out)
    return DevSet(source, rows, lambda outputs: {metric: judge(np.concatenate([out[0] for out in outputs]))}, about)


def describe(
    source: ExportModel,
    file: Path,
    columns: list[str],
    rows: list[dict],
    count: int,
    length: int,
    truncated: int,
    left_out: Counter,
) -> dict:
    """Return DevSet.about, and log how many tokens are unknown if they are more than a trace."""
    mark = source.reader.unk_token_id
    unknown = 0 if mark is None else sum(row["input_ids"].count(mark) for row in rows)
    tokens = sum(len(row["input_ids"]) for row in rows)
    log_if_significant(
        unknown,
        tokens,
        f"--data {file}: {unknown:,} of {tokens:,} tokens are unknown to the tokenizer ({source.reader.unk_token})",
    )
    return {
        "file": file.name,
        "columns": columns,
        "examples": count,
        "length": length,
        "truncated": truncated,
        "unknown": unknown,
        "left_out": dict(left_out),
    }


def get_length(source: ExportModel) -> int:
    """Return how many tokens of a text a truncating pipeline reads, unless the model takes fewer."""
    limit = source.reader.model_max_length
    return int(min(limit, source.positions)) if limit and limit > 0 else source.positions


def _make_judge(
    source: ExportModel, file: Path, task: Task | None, labels: list
) -> tuple[str, Callable[[np.ndarray], float | None]]:
    """Return (the metric, logits [examples, outputs] → its value) for labels as the file has them."""
    config = source.model.config
    if config.num_labels == 1:
        task = task if task and task.regression else None
        places = [(label, f"--data {file}, example {row}") for row, label in enumerate(labels, 1)]
        gold = np.array([parse_label(task, *place) if task else _parse_float(*place) for place in places])
        metric = task.metrics[0] if task else "pearson"
        is_sigmoid = config.problem_type != "regression"  # a pipeline then returns the sigmoid of the one output
        return metric, lambda logits: METRICS[metric](
            1 / (1 + np.exp(-logits[:, 0])) if is_sigmoid else logits[:, 0], gold
        )
    id2label = cast(dict[int, str], config.id2label)
    names = [str(id2label[i]) for i in sorted(id2label)]
    # which of the task's classes an output stands for
    classes = match_classes(names, task.labels) if task and task.labels else None
    if task and classes is None:
        log(
            f"--data {file}: the model's labels, {', '.join(names)}, are not those of {task.name}; the file's labels "
            "are read as the model's names and numbers, and scored by accuracy"
        )
    if not (task and classes):
        labels = _resolve_numbered_labels(labels, names, file)
    gold = np.array([_resolve_class(label, names, task, classes, file, row) for row, label in enumerate(labels, 1)])
    metric = task.metrics[0] if task and classes else "accuracy"
    order = np.array(classes or range(len(names)))
    return metric, lambda logits: METRICS[metric](order[logits.argmax(axis=1)], gold)


def _resolve_numbered_labels(labels: list, names: list[str], file: Path) -> list:
    """Return the labels, with numbers in class names replaced by the names; UserError where that is ambiguous."""
    otherwise = are_numbered_otherwise(labels, names)
    if otherwise is None:
        raise UserError(
            f"--data {file}: its labels may be the indices of the model's classes, from 0 on, or the numbers in their "
            f"names ({', '.join(names)}); write the names"
        )
    if not otherwise:
        return labels
    by_number: dict[int | None, str] = {int(re.findall(r"\d+", name)[0]): name for name in names}
    return [by_number.get(parse_number(label), label) for label in labels]


def _resolve_class(
    label: object, names: list[str], task: Task | None, classes: list[int] | None, file: Path, row: int
) -> int:
    """Return the class of a label of the file.

    It is the task's class, by id, where the model's `names` are known to be the task's (`classes`),
    else the model's own.
    """
    own_class = class_by_name(label, names)
    if task and classes:
        label_class = match_class(label, task.labels) if own_class is None else classes[own_class]
    else:
        label_class = class_by_number(label, names) if own_class is None else own_class
    if label_class is None:
        if parse_number(label) is None and isinstance(label, str):
            raise UserError(
                f"--data {file}: label {label!r} of example {row}: not one of the model's labels ({', '.join(names)})"
            )
        raise UserError(
            f"--data {file}: label {label} of example {row}: the model's labels are 0 to {len(names) - 1}, for its "
            f"classes ({', '.join(names)})"
        )
    return label_class


def _parse_float(label: Any, where: str) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: label {label}: must be a number, because the model predicts one")
    return number


def _make_question_set(source: ExportModel, file: Path) -> DevSet:
    """Return SQuAD's questions, split into parts of as many tokens as in fine-tuning, else of the usual number."""
    if not file.is_file():
        raise UserError(f"--data {file}: no such file; give SQuAD's JSON")
    questions = questions_in(TASKS["squad_v2"], file)  # it reads 1.1 as well, whose questions all have answers
    length = min(getattr(source.model.config, LENGTH_KEY, None) or LENGTH, get_length(source))
    spans = make_spans(questions, source.reader, length)
    log_if_significant(
        spans.cut,
        len(questions),
        f"--data {file}: {spans.cut:,} of {len(questions):,} questions are longer than the model reads and are "
        "truncated",
    )
    rows = [{name: spans.inputs[name][row] for name in source.inputs} for row in range(len(spans.question))]

    def judge(outputs: Outputs) -> Measured:
        starts, ends = ([row for batch in outputs for row in batch[place]] for place in (0, 1))
        return {"f1": squad_scores(questions, postprocess_spans(questions, spans, starts, ends))["f1"]}

    columns = ["question", "context"]
    return DevSet(
        source,
        rows,
        judge,
        describe(source, file, columns, rows, len(questions), length, spans.cut, questions.left_out),
    )


class LabeledExamples(NamedTuple):
    """Labeled examples of a file.

    Attributes:
        texts: One or two columns.
        labels: The labels as the file has them.
        columns: The names of the text columns.
        left_out: How many rows are left out, by cause.
    """

    texts: list[list[str]]
    labels: list
    columns: list[str]
    left_out: Counter[str]


def load_labeled_examples(file: Path, task: Task | None = None, columns: Sequence[str] = ()) -> LabeledExamples:
    """Return the examples of a file.

    Their texts come from `columns`, else from the task's columns, else from those that
    tasks.columns finds.
    """
    if not file.is_file():
        raise UserError(f"--data {file}: no such file; give a file with a column `label` and one or two text columns")
    if get_file_suffix(file) is None:
        raise UserError(
            f"--data {file}: not a supported kind of file; give {', '.join(FILE_FORMATS)}, plain, .gz or .zst"
        )
    if task:
        task_with_columns = replace(task, texts=tuple(columns)) if columns else task
        texts, labels, left_out = read_columns(task_with_columns, file)
        return LabeledExamples(texts, [label for _, label in labels], list(task_with_columns.texts), left_out)
    lines = list(read_rows(file))
    rows = [row for _, row in lines]
    if not rows:
        raise UserError(f"--data {file}: the file contains no examples")
    if not any("label" in row for row in rows):
        raise UserError(
            f"--data {file}: the columns are {', '.join(map(str, rows[0]))}; a column `label` and one or two text "
            "columns are needed"
        )
    if missing := [name for name in columns if not any(name in row for row in rows)]:
        raise UserError(f"--data {file}: no column {missing[0]}; the columns are {', '.join(map(str, rows[0]))}")
    for line, row in lines:
        for name in (*columns, "label") if columns else row:
            check_value(row, name, f"--data {file}, line {line}")
    names = list(columns) or text_columns(rows, f"--data {file}")
    complete = [row for row in rows if "label" in row and all(isinstance(row.get(name), str) for name in names)]
    if len(complete) < len(rows):
        raise UserError(
            f"--data {file}: {len(rows) - len(complete)} of its {len(rows)} rows lack text in {', '.join(names)}, or a "
            "label; complete or remove them"
        )
    others = [str(name) for name in rows[0] if name not in (*names, "label")]
    log(
        f"--data {file}: columns read as text: {', '.join(names)}"
        + (f"; not read: {', '.join(others)}" if others else "")
    )
    return LabeledExamples(
        [[replace_surrogates(row[name]) for row in rows] for name in names],
        [row["label"] for row in rows],
        names,
        Counter(),
    )
