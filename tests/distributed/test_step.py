"""The engine's step is the plain recipe, whatever the ZeRO stage, number of ranks and accumulation."""

import json

import pytest

from tests.distributed.launch import run_ranks


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_step_equals_reference(stage, world):
    output = run_ranks(world, ["-m", "tests.distributed.step_worker", str(stage), "1", "2", "4"])
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [row["accumulation"] for row in rows] == [1, 2, 4]
    for row in rows:
        assert row["loss"] <= 1e-5, row
        assert row["gradient"] <= 1e-4, row
        assert row["change"] <= 1e-3, row
        assert row["teacher_untouched"], row
