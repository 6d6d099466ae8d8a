"""The score of a fine-tuned folder on labelled examples, whatever runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ds_distill.errors import UserError
from ds_distill.export.compare import progress_over
from ds_distill.export.runtimes import Runner
from ds_distill.export.source import Source
from ds_distill.models.families import INPUTS
from ds_distill.tasks.catalog import TASKS
from ds_distill.tasks.metrics import scores
from ds_distill.tasks.squad import LENGTH, answers_of, questions_in, spans_of, squad_scores


def dev_score(source: Source, run: Runner, file: Path, what: str, batch: int = 8) -> dict[str, float]:
    """{metric: score}: the first metric of the task that the folder was fine-tuned on; where config.json names none, accuracy, or Pearson's
    correlation of one number.

    file: of a classifier a jsonl, csv or tsv (.gz too) with a column `label` and one or two of text, as the hub's GLUE sets have them; of a model that
    answers questions SQuAD's JSON. Raises UserError for other files, and for a folder with neither head.
    """
    if source.head == "question-answering":
        return _squad_score(source, run, file, what, batch)
    if source.head != "classification":
        raise UserError(f"--data: {source.folder} has the head {source.head}; labelled examples are for a classification or question-answering head")
    texts, labels = labelled(file)
    if labels.dtype.kind not in "iuf":
        ids = source.model.config.label2id
        unknown = next((label for label in labels if label not in ids), None)
        if unknown is not None:
            raise UserError(f"--data {file}: label {unknown!r} is none of the model's ({', '.join(ids)})")
        labels = np.array([ids[label] for label in labels])
    found = []
    for start in progress_over(list(range(0, len(labels), batch)), what):
        padded = source.tokenizer(*[column[start : start + batch] for column in texts], truncation=True, padding=True, return_tensors="np",
                                  max_length=source.positions)  # fmt: skip
        found.append(run({name: padded[name].astype(np.int64) for name in source.inputs})[0])
    logits = np.concatenate(found)
    task = TASKS.get(getattr(source.model.config, "finetuning_task", None))
    return scores((task.metrics[0] if task else "pearson" if logits.shape[-1] == 1 else "accuracy",), logits, labels)


def _squad_score(source: Source, run: Runner, file: Path, what: str, batch: int) -> dict[str, float]:
    if not file.is_file():
        raise UserError(f"--data {file}: no such file; give SQuAD's JSON")
    questions = questions_in(TASKS["squad_v2"], file)  # 1.1 as well: all of its questions have answers
    spans = spans_of(questions, source.tokenizer, min(LENGTH, source.positions))
    starts, ends = [], []
    for first in progress_over(list(range(0, len(spans.question), batch)), what):
        rows = [{name: spans.inputs[name][row] for name in INPUTS} for row in range(first, min(first + batch, len(spans.question)))]
        padded = source.tokenizer.pad(rows, return_tensors="np")
        outputs = run({name: np.asarray(padded[name]).astype(np.int64) for name in source.inputs})
        starts, ends = starts + list(outputs[0]), ends + list(outputs[1])
    return {"f1": squad_scores(questions, answers_of(questions, spans, starts, ends))["f1"]}


def labelled(file: Path) -> tuple[list[list[str]], np.ndarray]:
    """(one or two columns of text, labels) of a file of examples."""
    from datasets import load_dataset

    if not file.is_file():
        raise UserError(f"--data {file}: no such file; give examples with a column `label` and one or two of text")
    kind = "json" if ".json" in file.name else "csv"
    try:
        rows = load_dataset(kind, data_files=str(file), split="train", **({"sep": "\t"} if ".tsv" in file.name else {}))
    except Exception as error:  # the library answers a broken file with whatever breaks first
        raise UserError(f"--data {file}: cannot be read as {kind} ({' '.join(str(error).split())[:200]})") from error
    names = [name for name, feature in rows.features.items() if feature.dtype in ("string", "large_string") and name != "label"]
    if "label" not in rows.features or not 1 <= len(names) <= 2:
        raise UserError(f"--data {file}: columns {', '.join(rows.features)}: needs `label` and one or two of text")
    return [list(rows[name]) for name in names], np.array(rows["label"])
