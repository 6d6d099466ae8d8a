"""Test who is named as slow, and that a rank's own time is that of its parts alone."""

import time

import pytest
import torch

from ds_distill.distributed.heartbeat import find_ranks_behind
from ds_distill.training.rank_times import OwnTime, compare
from ds_distill.utils.step_clock import STEPS, StepClock

HOSTS = [f"node-{rank // 8}" for rank in range(512)]


@pytest.mark.promise("A slow rank is named with its host")
def test_the_slow_rank_of_many_is_named_with_its_host():
    times = [0.2 + 0.0001 * (rank % 7) for rank in range(512)]
    figures, line = compare(times, 0.3, HOSTS)
    assert line is None and figures["min"] == 0.2 and figures["median"] == pytest.approx(0.2003)
    times[300] = 0.31
    figures, line = compare(times, 0.4, HOSTS)
    assert figures["slowest_rank"] == 300 and figures["max"] == 0.31
    assert line.startswith("rank 300 on node-37 is slow: its own part of a step takes 0.310 s, where the median")
    assert compare(times, 20.0, HOSTS)[1] is None, "too little of a step to matter"
    assert compare([0.1, 0.3], 0.4, HOSTS)[0]["median"] == 0.2


def test_own_time_is_that_of_the_parts(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    own = OwnTime(torch.device("cpu"))
    STEPS.begin(1)
    for seconds in (2, 3):
        with own.measure():
            now += seconds
        now += 100
    assert STEPS.position() == (1, 2)
    STEPS.end()
    assert own.take() == 5 and own.take() == 0


def test_a_step_is_overdue_by_its_usual_time_and_never_at_first(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = StepClock()
    for step in range(1, 8):
        clock.begin(step)
        now += 1000 if step == 1 else 10
        assert clock.overdue() is None
        clock.end()
        now += 1e4
        assert clock.overdue() is None, "between two steps"
    clock.begin(8)
    now += 199
    assert clock.overdue() is None
    now += 2
    assert clock.overdue() == 201


def test_a_device_that_has_not_finished_a_part_is_behind():
    clock, done = StepClock(), False

    def gone() -> bool:
        raise RuntimeError("CUDA error: the GPU is off the bus")

    clock.begin(4)
    clock.finish_part()
    clock.finish_part(lambda: done)
    clock.finish_part(gone)
    assert clock.position() == (4, 1)
    done = True
    assert clock.position() == (4, 2)


@pytest.mark.parametrize(
    ("beats", "behind"),
    [
        (["9 4 2", "7 4 2", "8 4 2"], []),
        (["9 4 2", "7 4 1", "8 4 2"], [1]),
        (["9 4 0", "7 3 2", "8 3 2"], [1, 2]),
        (["gone", "7 3 2", "8 3 2"], []),
        (["9 10 0", "9 9 8"], [1]),
    ],
)
def test_ranks_behind(beats, behind):
    assert find_ranks_behind(beats) == behind
