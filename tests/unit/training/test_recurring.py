"""Checkpoints and evaluations are due by steps, by the clock, or while they are cheap."""

import pytest

from ds_distill.recipe import Training
from ds_distill.training.recurring import Recurring, when_to_evaluate, when_to_save


class Clock:
    """A clock that only the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(recurring: Recurring, clock: Clock, step_seconds: float, seconds: float) -> list[int]:
    """Return the steps after which something occurs that takes `seconds`, on one rank."""
    steps = []
    for step in range(1, recurring.total_steps + 1):
        clock.now += step_seconds
        if recurring.is_due(step, recurring.is_asked(step)):
            with recurring.occurrence():
                clock.now += seconds
            steps.append(step)
    return steps


@pytest.mark.parametrize("step_seconds", [0.01, 1.0, 100.0])
def test_steps_do_not_depend_on_the_clock(step_seconds):
    clock = Clock()
    assert run(Recurring(20, steps=7, clock=clock), clock, step_seconds, 5.0) == [7, 14, 20]


def test_a_time_counts_from_the_end_of_the_last_occurrence():
    clock = Clock()
    assert run(Recurring(12, seconds=3.0, clock=clock), clock, 1.0, 50.0) == [3, 6, 9, 12]
    assert run(Recurring(12, clock=clock), clock, 1.0, 50.0) == [12], "only at the end"


def test_another_ranks_clock_is_enough():
    clock = Clock()
    recurring = Recurring(20, seconds=60.0, clock=clock)
    assert not recurring.is_asked(5) and recurring.is_due(5, asked=True)


@pytest.mark.parametrize("seconds", [0.001, 0.5, 20.0])
def test_cheap_occurrences_stay_within_their_share(seconds):
    clock = Clock()
    total, certain = 20_000, [2000 * number for number in range(1, 11)]
    recurring = Recurring(total, steps=2000, cheap_steps=500, share=0.02, clock=clock)
    occurred = run(recurring, clock, 0.007, seconds)
    assert set(certain) <= set(occurred) <= set(range(500, total + 1, 500))
    extra = len(occurred) - len(certain)
    assert (extra - 1) * seconds <= 0.02 * (clock.now - 100.0), "of the whole time, but for the one that exceeded it"
    assert seconds > 0.001 or len(occurred) == 40


@pytest.mark.parametrize("total_steps", [1, 7, 10, 19, 25, 999, 4_999, 5_000, 10**6])
def test_by_default_at_least_ten_evaluations_and_one_per_500_steps_that_are_cheap(total_steps):
    due = when_to_evaluate(Training(), total_steps)
    assert due.steps >= 1 and total_steps // due.steps >= min(10, total_steps)
    assert due.steps <= 500 or due.cheap_steps == 500


@pytest.mark.parametrize("every", [0, 1, 700])
def test_a_number_of_steps_is_taken_as_it_is(every):
    training = Training(save_every=every, eval_every=every)
    for due in (when_to_save(training, 20), when_to_evaluate(training, 20)):
        assert (due.steps, due.seconds, due.cheap_steps) == (every, None, 0)


def test_times_are_taken_as_they_are():
    training = Training(save_every="auto", eval_every="90s")
    assert when_to_save(training, 20).seconds == 600 and when_to_evaluate(training, 20).seconds == 90
