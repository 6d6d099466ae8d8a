import pytest

from ds_distill.recipe import Training
from ds_distill.training.trainer import resolve_eval_every


@pytest.mark.parametrize("total_steps", [1, 7, 10, 19, 25, 999, 4_999, 5_000, 10**6])
def test_at_least_ten_evaluations_and_one_per_500_steps(total_steps):
    every = resolve_eval_every(Training(), total_steps)
    assert 1 <= every <= 500 and total_steps // every >= min(10, total_steps)


@pytest.mark.parametrize("every", [0, 1, 700])
def test_a_number_is_taken_as_it_is(every):
    assert resolve_eval_every(Training(eval_every=every), 20) == every
