"""Test metrics as functions of sums against their definitions, on sets in which examples occur several times."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.tasks.metric_sums import METRIC_SUMS
from ds_distill.tasks.metrics import METRICS

EXAMPLES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=12)


@pytest.mark.parametrize("metric", sorted(METRIC_SUMS.keys() - {"f1_micro"}))
@settings(max_examples=30, deadline=None)
@given(EXAMPLES.filter(lambda examples: sum(count for *_, count in examples) > 1))
def test_a_weighted_sum_scores_as_the_repeated_examples(metric, examples):
    predicted, labels, counts = np.array(examples).T
    if metric == "pearson":
        predicted, labels = predicted / 3 + 100, labels * 1e-3  # far from zero, and small
    terms, score = METRIC_SUMS[metric]
    found = score(counts @ terms(predicted, labels))
    expected = METRICS[metric](predicted.repeat(counts), labels.repeat(counts))
    assert np.isnan(found) if expected is None else found == pytest.approx(expected, abs=1e-9)


LABELS = st.tuples(*[st.integers(0, 1)] * 3)
SETS = st.lists(st.tuples(LABELS, LABELS, st.integers(0, 3)), min_size=2, max_size=12)


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "f1_micro"])
@settings(max_examples=30, deadline=None)
@given(SETS.filter(lambda examples: sum(count for *_, count in examples) > 1))
def test_a_weighted_sum_of_sets_of_labels_scores_as_the_repeated_examples(metric, examples):
    predicted, labels, counts = (np.array(part) for part in zip(*examples, strict=True))
    terms, score = METRIC_SUMS[metric]
    found = score(counts @ terms(predicted, labels))
    expected = METRICS[metric](predicted.repeat(counts, axis=0), labels.repeat(counts, axis=0))
    assert np.isnan(found) if expected is None else found == pytest.approx(expected, abs=1e-9)
