"""Test what is kept of a run's answers, and the constant answer, against plain definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_distill.finetune.dev_outputs import score_questions
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.dev_outputs import DevOutputs, find_constant_answer
from ds_distill.tasks.metrics import METRICS
from ds_distill.tasks.squad import Question, Questions
from ds_distill.tasks.squad_answers import Answer, squad_scores
from ds_distill.utils.errors import UserError

TEXTS = st.sampled_from(["a red house", "red house", "blue", "the", ""])
ROWS = st.lists(
    st.tuples(st.none() | TEXTS.filter(bool), TEXTS, st.floats(-5, 5), st.booleans()), min_size=1, max_size=12
)


@given(ROWS)
def test_the_scores_of_questions_have_the_official_mean(rows):
    questions = Questions(
        Question(str(i), "what?", gold or "", ((gold, 0),) if gold else ()) for i, (gold, *_) in enumerate(rows)
    )
    answers = [Answer([(odds, text)] if has else [], 0.0) for _, text, odds, has in rows]
    scored, official = score_questions(questions, answers), squad_scores(questions, answers)
    for metric in ("f1", "exact_match"):
        assert scored[metric].mean() == pytest.approx(official[metric])


@pytest.mark.parametrize(("task", "metric"), [("mrpc", "f1"), ("mrpc", "accuracy"), ("mnli", "accuracy")])
@given(labels=st.lists(st.integers(0, 1), min_size=1, max_size=9))
def test_no_constant_scores_better_on_the_training_labels(task, metric, labels):
    labels = np.array(labels)
    answer = find_constant_answer(get_task(task), metric, list(labels))
    scores = [METRICS[metric](np.full(len(labels), each), labels) for each in range(len(get_task(task).labels))]
    assert scores[answer] == max(score for score in scores if score is not None)


def test_the_constant_answers_scores_by_hand(tmp_path):
    """Of 4 dev examples 3 are of class 1; the training labels have more of class 0."""
    train = [0, 0, 0, 1]
    answers = {metric: find_constant_answer(get_task("mrpc"), metric, train) for metric in ("f1", "accuracy")}
    assert answers == {"f1": 1, "accuracy": 0}
    arrays = {"dev.predicted": np.array([1, 1, 0, 0]), "dev.labels": np.array([1, 1, 1, 0])}
    arrays |= {f"dev.{metric}.constant": np.array([answer]) for metric, answer in answers.items()}
    DevOutputs("data", arrays).save(tmp_path / "outputs")
    outputs = DevOutputs.load(tmp_path / "outputs")
    assert outputs.data == "data" and outputs.score_constant() == {"f1": pytest.approx(6 / 7), "accuracy": 0.25}
    assert outputs.score("f1", outputs.terms("f1").sum(0)) == pytest.approx(0.8)
    assert find_constant_answer(get_task("stsb"), "pearson", [1.0, 4.0]) == 2.5
    numbers = {"dev.predicted": np.array([1.0, 3.0]), "dev.labels": np.array([0.0, 5.0])}
    numbers |= {"dev.pearson.constant": np.array([2.5]), "dev.spearman.constant": np.array([2.5])}
    assert DevOutputs("data", numbers).score_constant() == {"pearson": 0.0, "spearman": 0.0}
    assert DevOutputs("data", numbers).terms("spearman") is None
    spans = {"dev.f1": np.array([0.5, 1.0]), "dev.f1.constant": np.array([0.0, 1.0])}
    assert DevOutputs("data", spans).score_constant() == {"f1": 0.5}, "the empty answer, right where there is none"
    (tmp_path / "outputs").write_bytes(b"half")
    with pytest.raises(UserError, match="outputs: cannot be read .*; remove it, and the model is scored again"):
        DevOutputs.load(tmp_path / "outputs")
