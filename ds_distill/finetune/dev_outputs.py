"""Which outputs of a run on its dev sets are kept, and those of a saved model that has none."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedModel

from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.finetune.data import Data, EncodedDev, dev_sets, get_split_name
from ds_distill.finetune.features import Collator
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.token_features import WordTokens, name_tags
from ds_distill.finetune.trainer import DevAnswers, answer_sets, score_answers
from ds_distill.tasks.dev_outputs import FILE, DevOutputs, find_constant_answer
from ds_distill.tasks.entities import count_tags
from ds_distill.tasks.examples import Examples
from ds_distill.tasks.metric_sums import METRIC_SUMS
from ds_distill.tasks.metrics import best_threshold, exact_match, overlap_f1, predict_labels
from ds_distill.tasks.squad import Questions
from ds_distill.tasks.squad_answers import Answer
from ds_distill.tasks.squad_spans import Spans
from ds_distill.tasks.tagged import OUTSIDE
from ds_distill.training.device import default_device
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError

# Kernels and devices differ in the last digits, which may turn an undecided example or two.
SAME_SCORE = 0.01


def collect_outputs(data: Data, max_train_samples: int, dev: EncodedDev, answers: DevAnswers) -> DevOutputs:
    """Return what is kept of a model's answers.

    Args:
        data: The task and its data.
        max_train_samples: How many training examples were used; 0 means all.
        dev: The dev sets.
        answers: The model's answers to them, from `answer_sets`.
    """
    task, arrays = data.task, {}
    for split, (_, gold) in dev.items():
        part = get_split_name(split)
        if task.spans:
            questions = cast(tuple[Questions, Spans], gold)[0]
            for metric, scores in score_questions(questions, cast(list[Answer], answers[split])).items():
                arrays[f"{part}.{metric}"] = scores
                arrays[f"{part}.{metric}.constant"] = np.array([float(not question.answers) for question in questions])
            continue
        train_labels = cast(Examples, data.train[: max_train_samples or None]).labels
        if isinstance(gold, WordTokens):
            named, right = name_tags(task, cast(list[np.ndarray], answers[split]), gold)
            arrays[f"{part}.counts"] = count_tags(task.metrics, named, right)
            often = Counter(label for tags in train_labels for label in tags).most_common(1)[0][0]
            answer = OUTSIDE if task.entities else task.labels[often]
            constant = count_tags(task.metrics, [[answer] * len(tags) for tags in right], right)
            arrays |= {f"{part}.{metric}.constant": constant for metric in task.metrics}
            continue
        outputs, labels = cast(np.ndarray, answers[split]), cast(np.ndarray, gold)
        arrays |= {f"{part}.predicted": predict_labels(outputs, labels), f"{part}.labels": labels}
        for metric in task.metrics if task.regression else METRIC_SUMS.keys() & {*task.metrics}:
            arrays[f"{part}.{metric}.constant"] = find_constant_answer(task, metric, train_labels)
    return DevOutputs(data.fingerprint, {name: np.ascontiguousarray(values) for name, values in arrays.items()})


def score_questions(questions: Questions, answers: list[Answer]) -> dict[str, np.ndarray]:
    """Return each question's f1 and exact_match, [questions], whose means are those of `squad_scores`.

    Where some questions have no answer, the thresholds are those that are best for all questions.
    """
    has_answer = [bool(question.answers) for question in questions]
    scored = {}
    for metric, judge in (("f1", overlap_f1), ("exact_match", exact_match)):
        scores = [
            judge(answer.text, question.references) if question.answers else 0.0
            for question, answer in zip(questions, answers, strict=True)
        ]
        if questions and not all(has_answer):
            odds = [answer.null_odds for answer in answers]
            _, threshold = best_threshold(scores, has_answer, odds)
            scores = [
                score * (odd <= threshold) if has else float(odd > threshold)
                for score, has, odd in zip(scores, has_answer, odds, strict=True)
            ]
        scored[metric] = np.array(scores)
    return scored


def answer_again(run: Path, data: Data, model: PreTrainedModel) -> tuple[DevOutputs, float | None]:
    """Return what a model answers to the dev sets as a finished run's did, and its score.

    Args:
        run: The run's folder, with result.json and the tokenizer in model/.
        data: The task and its data, as the files hold them now.
        model: The run's model, or a stand-in for it.
    """
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(run / "model")
    with spinner(f"reading {data.task.name}"):
        dev = dev_sets(data, tokenizer, tokenizer.model_max_length)
    batch, what = 2 * result["settings"]["batch_size"], f"{run.parent.name}, seed {result['seed']}"
    answers = answer_sets(data.task, model, dev, Collator(tokenizer), batch, what)
    score = score_answers(data.task, dev, answers)[data.task.metrics[0]]
    return collect_outputs(data, result["settings"]["max_train_samples"], dev, answers), score


def score_again(folder: Path, data: Data) -> DevOutputs:
    """Return the outputs of a finished run that kept none, from its saved model, and keep them.

    Args:
        folder: The run's folder, with result.json and model.
        data: The task and its data, as the files hold them now.

    Raises:
        UserError: If the model is gone, or its score is not the run's, since the data have changed.
    """
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    model_folder, metric = folder / "model", data.task.metrics[0]
    model = load_for_task(str(model_folder), data.task, "model", tuned=True)
    model = model.to(default_device())  # type: ignore[arg-type]  # wrong in transformers
    outputs, score = answer_again(folder, data, model)
    before = result["metrics"][metric]
    if (score is None) != (before is None) or abs((score or 0) - (before or 0)) > SAME_SCORE:
        raise UserError(
            f"{model_folder}: its {metric} was {before}, and is {score} on the files that there are now; give the data "
            "that it was scored on"
        )
    outputs.save(folder / FILE)
    return outputs
