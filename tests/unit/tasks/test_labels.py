"""Test which class a label stands for."""

import itertools

import pytest

from ds_distill.tasks.labels import are_numbered_otherwise, match_class, match_classes

STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]


@pytest.mark.parametrize(
    "names, yes",
    [
        (["yes", "no"], 0),
        (["no", "yes"], 1),
        (["Positive", "Negative"], 0),
        (["false", "true"], 1),
        (["other", "no"], 0),
        (["yes", "unsure"], 0),
        (["a", "b"], 1),
        (["LABEL_0", "LABEL_1"], 1),
    ],
)
def test_a_truth_value_is_the_class_that_says_so(names, yes):
    assert match_class(True, names) == match_class("true", names) == yes
    assert match_class(False, names) == match_class("FALSE", names) == 1 - yes


def test_a_truth_value_that_may_be_either_is_none():
    assert (
        match_class(True, ["entailment", "not_entailment"]) is None
        and match_class("true", ["yes", "true story", "no"]) is None
    )


@pytest.mark.parametrize(
    "labels, otherwise",
    [([1, 2, 3, 4], None), ([0, 1], False), (["5", 2], True), ([1.0, 5.0], True), (["3 stars"], False)],
)
def test_numbers_in_the_names_of_classes_are_told_from_the_classes_own(labels, otherwise):
    assert are_numbered_otherwise(labels, STARS) is otherwise


@pytest.mark.parametrize(
    "names", [["0", "1"], ["LABEL_0", "LABEL_1"], ["negative", "positive"], ["3", "1", "2"], ["top1", "top1"]]
)
def test_names_without_numbers_of_their_own_leave_labels_as_they_are(names):
    assert are_numbered_otherwise([0, 1, 2], names) is False


def test_white_space_in_a_name_is_a_name_of_its_own():
    assert match_class("a", ["a", " a"]) == 0 and match_class(" a", ["a", " a"]) == 1


@pytest.mark.parametrize("names", [("3", "1", "2"), ("2", "1"), ("LABEL_2", "LABEL_1"), ("1", "0"), ("b", "a")])
def test_labels_with_the_names_of_a_task_are_those_labels_in_any_order(names):
    for labels in itertools.permutations(names):
        assert [names[number] for number in match_classes(labels, names)] == list(labels)


def test_numbers_from_1_on_are_in_the_order_of_names_that_are_no_numbers():
    assert match_classes(["2", "1", "3"], ["low", "mid", "high"]) == [1, 0, 2]
