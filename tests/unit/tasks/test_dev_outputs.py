"""Test what is kept of a run's answers, and the constant answer, against plain definitions."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.finetune.dev_outputs import collect_outputs, score_questions
from ds_distill.finetune.token_features import WordTokens
from ds_distill.tasks.catalog import Task, get_task
from ds_distill.tasks.dev_outputs import DevOutputs, find_constant_answer
from ds_distill.tasks.entities import count_tags, tag_scores
from ds_distill.tasks.examples import Examples
from ds_distill.tasks.metric_sums import TAG_SCORES
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


@pytest.mark.parametrize(
    ("task", "metric"), [("mrpc", "f1"), ("mrpc", "accuracy"), ("mnli", "accuracy"), ("mnli", "f1_macro")]
)
@settings(max_examples=40)
@given(labels=st.lists(st.integers(0, 1), min_size=1, max_size=9))
def test_no_constant_scores_better_on_the_training_labels(task, metric, labels):
    labels = np.array(labels)
    [answer] = find_constant_answer(get_task(task), metric, list(labels))
    scores = [METRICS[metric](np.full(len(labels), each), labels) for each in range(len(get_task(task).labels))]
    assert scores[answer] == max(score for score in scores if score is not None)


LABEL_SETS = st.lists(st.tuples(*[st.integers(0, 1)] * 3), min_size=1, max_size=9)


@pytest.mark.parametrize("metric", ["accuracy", "f1_micro", "f1_macro"])
@settings(max_examples=30)  # scikit-learn scores eight sets in each
@given(labels=LABEL_SETS.filter(lambda rows: any(map(any, rows))))
def test_no_constant_set_of_labels_scores_better(metric, labels):
    labels = np.array(labels)
    task = Task("own", ("text",), ("a", "b", "c"), (metric,), ("", None), multi_label=True)
    answer = find_constant_answer(task, metric, labels.tolist())
    scores = {
        given: METRICS[metric](np.broadcast_to(given, labels.shape), labels)
        for given in itertools.product((0, 1), repeat=3)
    }
    best = max(score for score in scores.values() if score is not None)
    assert scores[tuple(answer.tolist())] == pytest.approx(best)
    arrays = {"dev.predicted": labels, "dev.labels": labels, f"dev.{metric}.constant": answer}
    assert DevOutputs("data", arrays).score_constant() == {metric: pytest.approx(best)}


TAGS = st.lists(st.lists(st.sampled_from(["O", "B-a", "I-a", "B-b", "I-b"]), min_size=1, max_size=5), max_size=4)


@pytest.mark.parametrize("metrics", [("f1", "precision", "recall"), ("accuracy",)])
@given(TAGS, st.randoms(use_true_random=False))
def test_counts_of_tags_sum_to_their_scores(metrics, gold, random):
    predicted = [[random.choice([tag, "O", "B-a", "I-b"]) for tag in tags] for tags in gold]
    sums = count_tags(metrics, predicted, gold).sum(0)
    for metric, expected in tag_scores(metrics, predicted, gold).items():
        found = TAG_SCORES[metric](sums)
        assert np.isnan(found) if expected is None else found == pytest.approx(expected)


def test_the_constant_answer_to_words_is_that_they_are_in_no_entity():
    words = WordTokens([[1, 2], [0], [0]], [[1, 2], [1], [-1]])
    task = replace(get_task("ner"), labels=("O", "B-a", "I-a"))
    logits = [np.eye(3)[:, [0, 1, 2]], np.eye(3)[:, [0, 0]], np.eye(3)[:, [0, 0]]]
    train = Examples([[["a"]], [["b"]]], [[0], [1]])
    data = SimpleNamespace(task=task, train=train, fingerprint="data")
    outputs = collect_outputs(data, 0, {"validation": (None, words)}, {"validation": logits})
    assert outputs.terms("f1").tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert outputs.score("f1", outputs.terms("f1").sum(0)) == 1
    assert outputs.score_constant() == {"f1": 0, "precision": 0, "recall": 0}


def test_the_constant_answers_scores_by_hand(tmp_path):
    """Of 4 dev examples 3 are of class 1; the training labels have more of class 0."""
    train = [0, 0, 0, 1]
    answers = {metric: find_constant_answer(get_task("mrpc"), metric, train)[0] for metric in ("f1", "accuracy")}
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
