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

from ds_distill.data.encodings import replace_surrogates
from ds_distill.exporters.model import Source
from ds_distill.exporters.parity import progress_over
from ds_distill.exporters.runtimes import Runner
from ds_distill.models.inputs import encode_rows, pad_right
from ds_distill.tasks.catalog import LENGTH_KEY, TASKS, Task, plain
from ds_distill.tasks.columns import named_columns, text_columns
from ds_distill.tasks.examples import (
    KINDS,
    check_value,
    kind_of,
    label_of,
    read_columns,
    rows_of,
)
from ds_distill.tasks.labels import (
    are_numbered_otherwise,
    class_by_name,
    class_by_number,
    class_of,
    classes_of,
    number_of,
)
from ds_distill.tasks.metrics import METRICS, Measured
from ds_distill.tasks.squad import LENGTH, postprocess_spans, questions_in, spans_of, squad_scores
from ds_distill.utils.console import log, log_if_significant
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

    source: Source
    rows: list[dict[str, list[int]]]
    judge: Callable[[Outputs], Measured]
    about: dict

    def __str__(self) -> str:
        """Return the description for a model card."""
        a = self.about
        cut = "questions cut" if self.source.head == "question-answering" else f"cut to {a['length']} tokens"
        lost = [f"{a['truncated']:,} {cut}"] if a["truncated"] else []
        lost += [f"{a['unknown']:,} tokens unknown"] if a["unknown"] else []
        lost += [f"{count:,} {cause} left out" for cause, count in a["left_out"].items()]
        return ", ".join([f"{a['file']} ({', '.join(a['columns'])}): {a['examples']:,} examples", *lost])

    def score(self, run: Runner, what: str, batch: int = 8) -> Measured:
        """Return {metric: score} of the answers of `run`."""
        outputs: Outputs = []
        for start in progress_over(list(range(0, len(self.rows), batch)), what):
            padded = pad_right(self.rows[start : start + batch], self.source.reader.pad_token_id)
            outputs.append(run({name: padded[name] for name in self.source.inputs}))
        return self.judge(outputs)


def dev_score(source: Source, run: Runner, file: Path, what: str, batch: int = 8) -> Measured:
    """Return the score on a file; see dev_set."""
    return dev_set(source, file).score(run, what, batch)


def dev_set(source: Source, file: str | Path) -> DevSet:
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
        return _questions(source, path)
    if source.head != "classification":
        raise UserError(
            f"--data: {source.folder} has the head {source.head}; labelled examples are for a classification or "
            "question-answering head"
        )
    config = source.model.config
    trained_on = plain(getattr(config, "finetuning_task", None))
    task = next((task for task in TASKS.values() if plain(task.name) == trained_on and not task.spans), None)
    read = labelled(path, task, columns)
    metric, judge = _judge(source, path, task, read.labels)
    length = _length(source)
    encoded, truncated = encode_rows(source.reader, read.texts, length)
    count = len(read.labels)
    log_if_significant(
        truncated, count, f"--data {path}: {truncated:,} of {count:,} examples are longer than {length} tokens, and cut"
    )
    if (tuned := getattr(config, LENGTH_KEY, None) or length) < length:
        longer = sum(len(ids) > tuned for ids in encoded["input_ids"])
        log_if_significant(
            longer,
            count,
            f"--data {path}: {longer:,} of {count:,} examples are longer than the {tuned} tokens that the model "
            f"was fine-tuned on; they are read to {length}, where its tokenizer cuts",
        )
    rows = [{name: encoded[name][row] for name in source.inputs} for row in range(count)]
    about = _about(source, path, read.columns, rows, count, length, truncated, read.left_out)
    return DevSet(source, rows, lambda outputs: {metric: judge(np.concatenate([out[0] for out in outputs]))}, about)


def _about(
    source: Source,
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


def _length(source: Source) -> int:
    """Return how many tokens of a text a truncating pipeline reads, unless the model takes fewer."""
    limit = source.reader.model_max_length
    return int(min(limit, source.positions)) if limit and limit > 0 else source.positions


def _judge(
    source: Source, file: Path, task: Task | None, labels: list
) -> tuple[str, Callable[[np.ndarray], float | None]]:
    """Return (the metric, logits [examples, outputs] → its value) for labels as the file has them."""
    config = source.model.config
    if config.num_labels == 1:
        task = task if task and task.regression else None
        places = [(label, f"--data {file}, example {row}") for row, label in enumerate(labels, 1)]
        gold = np.array([label_of(task, *place) if task else _number(*place) for place in places])
        metric = task.metrics[0] if task else "pearson"
        squashed = config.problem_type != "regression"  # a pipeline then returns the sigmoid of the one output
        return metric, lambda logits: METRICS[metric](
            1 / (1 + np.exp(-logits[:, 0])) if squashed else logits[:, 0], gold
        )
    id2label = cast(dict[int, str], config.id2label)
    names = [str(id2label[i]) for i in sorted(id2label)]
    # which of the task's classes an output stands for
    meant = classes_of(names, task.labels) if task and task.labels else None
    if task and meant is None:
        log(
            f"--data {file}: the model's labels, {', '.join(names)}, are not all {task.name}'s: labels are taken for "
            "its own names and numbers, and scored by accuracy"
        )
    if not (task and meant):
        labels = _by_name(labels, names, file)
    gold = np.array([_class(label, names, task, meant, file, row) for row, label in enumerate(labels, 1)])
    metric = task.metrics[0] if task and meant else "accuracy"
    order = np.array(meant or range(len(names)))
    return metric, lambda logits: METRICS[metric](order[logits.argmax(axis=1)], gold)


def _by_name(labels: list, names: list[str], file: Path) -> list:
    """Return the labels, with numbers in class names replaced by the names; UserError where that is ambiguous."""
    otherwise = are_numbered_otherwise(labels, names)
    if otherwise is None:
        raise UserError(
            f"--data {file}: its labels may be the numbers of the model's classes, from 0 on, or those in their names "
            f"({', '.join(names)}); write the names"
        )
    if not otherwise:
        return labels
    by_number: dict[int | None, str] = {int(re.findall(r"\d+", name)[0]): name for name in names}
    return [by_number.get(number_of(label), label) for label in labels]


def _class(label: object, names: list[str], task: Task | None, meant: list[int] | None, file: Path, row: int) -> int:
    """Return the class of a label of the file.

    It is the task's class, by id, where the model's `names` are known to be the task's (`meant`),
    else the model's own.
    """
    own = class_by_name(label, names)
    if task and meant:
        found = class_of(label, task.labels) if own is None else meant[own]
    else:
        found = class_by_number(label, names) if own is None else own
    if found is None:
        if number_of(label) is None and isinstance(label, str):
            raise UserError(
                f"--data {file}: label {label!r} is none of the model's ({', '.join(names)}), example {row}"
            )
        raise UserError(
            f"--data {file}: label {label} of example {row}: the model's are 0 to {len(names) - 1}, its classes "
            f"({', '.join(names)})"
        )
    return found


def _number(label: Any, where: str) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: label {label}: the model's are a number")
    return number


def _questions(source: Source, file: Path) -> DevSet:
    """Return SQuAD's questions, split into parts of as many tokens as in fine-tuning, else of the usual number."""
    if not file.is_file():
        raise UserError(f"--data {file}: no such file; give SQuAD's JSON")
    questions = questions_in(TASKS["squad_v2"], file)  # it reads 1.1 as well, whose questions all have answers
    length = min(getattr(source.model.config, LENGTH_KEY, None) or LENGTH, _length(source))
    spans = spans_of(questions, source.reader, length)
    log_if_significant(
        spans.cut,
        len(questions),
        f"--data {file}: {spans.cut:,} of {len(questions):,} questions are longer than a model reads, and cut",
    )
    rows = [{name: spans.inputs[name][row] for name in source.inputs} for row in range(len(spans.question))]

    def judge(outputs: Outputs) -> Measured:
        starts, ends = ([row for batch in outputs for row in batch[place]] for place in (0, 1))
        return {"f1": squad_scores(questions, postprocess_spans(questions, spans, starts, ends))["f1"]}

    columns = ["question", "context"]
    return DevSet(
        source, rows, judge, _about(source, file, columns, rows, len(questions), length, spans.cut, questions.left_out)
    )


class Labelled(NamedTuple):
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


def labelled(file: Path, task: Task | None = None, columns: Sequence[str] = ()) -> Labelled:
    """Return the examples of a file.

    Their texts come from `columns`, else from the task's columns, else from those that
    tasks.columns finds.
    """
    if not file.is_file():
        raise UserError(f"--data {file}: no such file; give examples with a column `label` and one or two of text")
    if kind_of(file) is None:
        raise UserError(f"--data {file}: one of {', '.join(KINDS)} (.gz and .zst too) is needed")
    if task:
        own = replace(task, texts=tuple(columns)) if columns else task
        texts, labels, left_out = read_columns(own, file)
        return Labelled(texts, [label for _, label in labels], list(own.texts), left_out)
    lines = list(rows_of(file))
    rows = [row for _, row in lines]
    if not rows:
        raise UserError(f"--data {file}: no examples in it")
    if not any("label" in row for row in rows):
        raise UserError(f"--data {file}: columns {', '.join(map(str, rows[0]))}: needs `label` and one or two of text")
    if missing := [name for name in columns if not any(name in row for row in rows)]:
        raise UserError(f"--data {file}: no column {missing[0]}; its columns are {', '.join(map(str, rows[0]))}")
    for line, row in lines:
        for name in (*columns, "label") if columns else row:
            check_value(row, name, f"--data {file}, line {line}")
    names = list(columns) or text_columns(rows, f"--data {file}")
    whole = [row for row in rows if "label" in row and all(isinstance(row.get(name), str) for name in names)]
    if len(whole) < len(rows):
        raise UserError(
            f"--data {file}: {len(rows) - len(whole)} of its {len(rows)} rows lack one of {', '.join(names)} (text) "
            "and label"
        )
    others = [str(name) for name in rows[0] if name not in (*names, "label")]
    log(f"--data {file}: read as text: {', '.join(names)}" + (f"; not read: {', '.join(others)}" if others else ""))
    return Labelled(
        [[replace_surrogates(row[name]) for row in rows] for name in names],
        [row["label"] for row in rows],
        names,
        Counter(),
    )
