"""Rates are those of the last steps alone; the means at the end are of all time."""

import pytest

from ds_distill.training.throughput import WINDOW_STEPS, Throughput


class Clock:
    """A clock that only the test moves."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


def steps(throughput: Throughput, clock: Clock, count: int, seconds: float, waited: float = 0.0) -> None:
    for _ in range(count):
        clock.now += seconds
        throughput.add(1000, waited)


def test_a_run_that_slows_down_shows_it_within_the_window():
    clock = Clock()
    throughput = Throughput(clock)
    steps(throughput, clock, 100_000, 0.5)
    assert throughput.tokens_per_second == pytest.approx(2000)
    steps(throughput, clock, WINDOW_STEPS, 1.0, waited=0.6)
    assert throughput.tokens_per_second == pytest.approx(1000)
    assert throughput.data_wait_share == pytest.approx(0.6)
    means = throughput.means()
    assert (
        means["tokens_per_second"]
        == pytest.approx(means["step_tokens_per_second"], rel=1e-9)
        == pytest.approx(1999, abs=1)
    )
    assert means["data_wait_share"] < 0.01


def test_evaluations_checkpoints_and_compiling_do_not_count_as_steps():
    clock = Clock()
    throughput = Throughput(clock)
    with throughput.paused():
        clock.now += 500  # the evaluation at the start
    clock.now += 31
    throughput.add(1000, 0.0, compiling=30.0)
    for _ in range(9):
        with throughput.paused():
            clock.now += 7
        clock.now += 1
        throughput.add(1000, 0.25, compiling=30.0)
    assert throughput.tokens_per_second == pytest.approx(1000)
    assert throughput.data_wait_share == pytest.approx(2.25 / 10)
    means = throughput.means()
    assert means["step_tokens_per_second"] == pytest.approx(1000)
    assert means["tokens_per_second"] == pytest.approx(10_000 / (500 + 31 + 9 * 8)), "of all the time"


def test_no_step_has_no_rate():
    throughput = Throughput(Clock())
    assert throughput.means() == {} and throughput.tokens_per_second == 0 == throughput.data_wait_share
