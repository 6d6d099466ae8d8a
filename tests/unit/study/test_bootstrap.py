"""Test the paired bootstrap against enumeration, known variances and a plain loop."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.study.bootstrap import estimate, resample_scores, share_of
from ds_distill.tasks.metric_sums import METRIC_SUMS, mean_score, mean_terms
from ds_distill.tasks.metrics import METRICS


def test_the_draws_have_the_distribution_of_all_that_are_possible():
    """Of 3 examples and 3 seeds, all 27 × 9 draws are enumerated with the metric's own definition."""
    random = np.random.default_rng(5)
    labels, predicted = random.normal(size=3), random.normal(size=(3, 3))
    terms, score = METRIC_SUMS["pearson"]
    scores = resample_scores({"a": [terms(run, labels) for run in predicted]}, score, resamples=40_000)["a"]
    possible = []
    for rows in itertools.product(range(3), repeat=3):
        each = [METRICS["pearson"](run[list(rows)], labels[list(rows)]) for run in predicted]
        for seeds in itertools.product(range(3), repeat=2):
            possible.append(math.nan if None in each else np.mean([each[seed] for seed in seeds]))
    assert scores[0] == pytest.approx(np.mean([METRICS["pearson"](run, labels) for run in predicted]))
    assert np.isnan(scores[1:]).mean() == pytest.approx(np.isnan(possible).mean(), abs=0.01)
    quantiles = [0.1, 0.25, 0.4, 0.6, 0.75, 0.9]
    for level in np.nanquantile(possible, quantiles) + 1e-6:
        expected = np.mean(np.array(possible)[np.isfinite(possible)] <= level)
        assert np.mean(scores[1:][np.isfinite(scores[1:])] <= level) == pytest.approx(expected, abs=0.015)


def test_variances_of_seeds_and_examples():
    """The variance of seeds is that of their mean without bias; of paired models, what examples share is gone."""
    means = np.array([0.1, 0.4, 0.3, 0.9])
    scores = resample_scores({"a": [mean_terms(np.full(50, value)) for value in means]}, mean_score)["a"]
    assert scores[1:].var() == pytest.approx(means.var(ddof=1) / len(means), rel=0.05)
    values = np.random.default_rng(0).random(400)
    runs = {"a": [mean_terms(values)], "b": [mean_terms(values + 0.25)]}
    scores = resample_scores(runs, mean_score)
    assert scores["a"][1:].var() == pytest.approx(values.var() / 400, rel=0.05)
    difference = estimate(scores["b"] - scores["a"])
    assert difference == pytest.approx((0.25, 0.25, 0.25)), "the same examples in both"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_another_model_changes_no_figure_and_the_seed_decides(examples, seeds, seed):
    random = np.random.default_rng(seed)
    runs = {name: [mean_terms(random.random(examples) < 0.5) for _ in range(seeds)] for name in "abc"}
    one = resample_scores({"a": runs["a"]}, mean_score, task="rte", resamples=50, seed=seed)
    all_models = resample_scores(runs, mean_score, task="rte", resamples=50, seed=seed)
    assert np.array_equal(one["a"], all_models["a"])
    value, low, high = estimate(all_models["b"])
    assert 0 <= low <= high <= 1 and value == pytest.approx(np.mean([terms[:, 1].mean() for terms in runs["b"]]))


def test_other_seeds_and_tasks_draw_otherwise():
    keys = [("x", 0), ("x", 1), ("y", 0)]
    runs = {"a": [mean_terms(np.arange(9.0))]}
    draws = [resample_scores(runs, mean_score, task=task, seed=seed)["a"] for task, seed in keys]
    assert len({tuple(each) for each in draws}) == 3 and len({each[0] for each in draws}) == 1


def test_what_cannot_be_measured_has_no_interval():
    share = share_of(np.array([0.5, 0.2, 0.1]), np.array([1.0, 0.0, -0.5]))
    assert share[0] == 0.5 and np.isnan(share[1:]).all()
    assert estimate(share) is None and estimate(np.array([np.nan, 1.0])) is None
