"""Held-out figures do not depend on the number of ranks or on the ZeRO stage."""

import json

import pytest

from ds_distill.training.evaluation import FIGURES
from tests.start import run_ranks


def test_one_and_two_ranks_agree():
    stages = ["zero0", "zero3"]
    one, *others = (
        json.loads(line)
        for world in (1, 2)
        for line in run_ranks(world, "tests.distributed.evaluation_worker", *stages).splitlines()
        if line.startswith("{")
    )
    assert len(others) == 3 and tuple(one) == FIGURES
    assert one["mlm_count"] == one["mask_count"] + one["kept_count"] + one["random_count"] > 100
    for other in others:
        assert {key: other[key] for key in FIGURES if key.endswith("_count")} == {
            key: one[key] for key in FIGURES if key.endswith("_count")
        }
        assert other == pytest.approx(one, rel=1e-6)
