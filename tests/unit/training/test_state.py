"""A run's history is bounded, has its last steps, and does not depend on where the run was resumed."""

import json
import math

import pytest

from ds_distill.data.batch import TokenCounts
from ds_distill.reporting.panels import MOST_POINTS, mean_points
from ds_distill.training import state as state_module
from ds_distill.training.state import StepResult, TrainState


def result(step: int) -> StepResult:
    return StepResult(1 / step, {"mlm": math.nan if step == 7 else 1 / step}, 1.0, False, *[False] * 5, 0.0, sums=[])


def run(first: TrainState, last_step: int) -> TrainState:
    while first.step < last_step:
        first.update(result(first.step + 1), TokenCounts(100, 15))
    return first


@pytest.mark.parametrize("most, recent", [(16, 4), (16, 5), (100, 60)])
def test_a_long_history_is_bounded_and_spread_over_the_run(monkeypatch, most, recent):
    monkeypatch.setattr(state_module, "MOST_ROWS", most)
    monkeypatch.setattr(state_module, "RECENT_ROWS", recent)
    state = TrainState()
    for last in range(1, 2000):
        steps = [row["step"] for row in run(state, last).history]
        assert len(steps) <= most and steps == sorted(set(steps)) and steps[0] == 1
        assert steps[-recent:] == list(range(max(1, last - recent + 1), last + 1)), "the last steps are all there"
        older = steps[1:-recent]
        gaps = [after - before for before, after in zip(older, older[1:], strict=False)]
        assert max(gaps, default=0) <= max(1, 8 * last / (most - recent)), "no part of the run is lost"
    assert state.history[-1] == {"step": 1999, "tokens": 199_900, "loss": 1 / 1999, "mlm": 1 / 1999}


def test_a_resumed_history_equals_an_uninterrupted_one(monkeypatch):
    monkeypatch.setattr(state_module, "MOST_ROWS", 16)
    monkeypatch.setattr(state_module, "RECENT_ROWS", 4)
    whole = run(TrainState(), 300)
    for stop in range(1, 300, 13):
        saved = json.loads(json.dumps(run(TrainState(), stop).as_dict()))
        assert run(TrainState.from_checkpoint(saved), 300) == whole


def test_a_run_of_thousands_of_steps_keeps_every_one():
    history = run(TrainState(), 4096).history
    assert [row["step"] for row in history] == list(range(1, 4097)) and history[6]["mlm"] is None


def test_a_plot_of_a_thinned_history_has_equally_long_blocks():
    rows = run(TrainState(), 9000).history
    tokens, values = mean_points(rows, "loss")
    assert len(tokens) == len(values) == MOST_POINTS
    assert tokens[-1] == 900_000 and values == sorted(values, reverse=True)
    every = [{"step": step, "tokens": 100 * step, "loss": 1 / step} for step in range(1, 9001)]
    exact = mean_points(every, "loss")[1]
    assert values[10:] == pytest.approx(exact[10:], rel=0.01)
