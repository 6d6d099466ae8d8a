"""Held-out figures do not depend on the number of ranks or on the ZeRO stage."""

import json

import pytest

from ds_distill.training.evaluation import FIGURES
from tests.start import run_ranks


@pytest.mark.promise("Ranks share the held-out text, and its figures have the same bits for any number of ranks")
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.long)])
def test_the_figures_have_the_same_bits_for_any_number_of_ranks(world):
    """Five batches: the last one of two or three ranks has nothing to read, and calls the model all the same.

    The ranks' batches have different numbers of sequences, which matters to a term that owns weights.
    """
    stages = ["zero0", "zero3"]
    one, other = (
        [
            json.loads(line)
            for line in run_ranks(ranks, "tests.distributed.evaluation_worker", *stages).splitlines()
            if line.startswith("{")
        ]
        for ranks in (1, world)
    )
    assert len(one) == len(other) == 4 and tuple(one[0]) == FIGURES and "cosine" in one[1]
    assert one[0]["mlm_count"] == one[0]["mask_count"] + one[0]["kept_count"] + one[0]["random_count"] > 100
    assert other == one
    for whole, sharded in zip(one[:2], one[2:], strict=True):
        assert sharded == pytest.approx(whole, rel=1e-6), "ZeRO stages differ in the last bits of the weights alone"
