"""Hold the optimal brain surgeon against least squares in float64."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ds_distill.compression.surgeon import correct_linear, corrected, damped, plan_removal

TOKENS = 200


def make(seed, inner=8, outer=5, rank=None):
    """Return inputs [TOKENS, inner] with means, their covariance and a weight; of less than full rank if asked."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(TOKENS, rank or inner, generator=generator, dtype=torch.float64)
    inputs = inputs @ torch.randn(rank or inner, inner, generator=generator, dtype=torch.float64) + torch.arange(inner)
    centered = inputs - inputs.mean(0)
    return inputs, centered.T @ centered / TOKENS, torch.randn(outer, inner, generator=generator, dtype=torch.float64)


def least_error(inputs, weight, kept):
    """Return (the least half mean squared error of a layer that reads the kept inputs alone, its weight)."""
    wanted = inputs @ weight.T
    given = torch.cat([inputs[:, kept], torch.ones(TOKENS, 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(given, wanted).solution
    return 0.5 * (given @ best - wanted).square().sum(1).mean(), best[:-1].T


@given(seed=st.integers(0, 999), kept=st.sets(st.integers(0, 7), min_size=1, max_size=7))
@settings(deadline=None, max_examples=40)
def test_corrected_weights_are_those_of_least_squares(seed, kept):
    inputs, covariance, weight = make(seed)
    kept = sorted(kept)
    torch.testing.assert_close(corrected(weight, covariance, kept), least_error(inputs, weight, kept)[1])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_errors_on_the_way_are_those_of_least_squares(size):
    inputs, covariance, weight = make(3)
    removal = plan_removal(weight, covariance, size)
    assert sorted(removal.order) == list(range(8 // size))
    for gone in range(8 // size):
        kept = [number * size + place for number in removal.kept(8 // size - gone) for place in range(size)]
        torch.testing.assert_close(removal.errors[gone], least_error(inputs, weight, kept)[0].item())
    outputs = inputs @ weight.T
    everything = 0.5 * (outputs - outputs.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(removal.errors[-1], everything.item())


@pytest.mark.parametrize("size", [1, 2])
def test_the_structure_that_goes_first_costs_least(size):
    inputs, covariance, weight = make(4)
    first = plan_removal(weight, covariance, size).order[0]
    costs = []
    for number in range(8 // size):
        kept = [place for place in range(8) if place // size != number]
        costs.append(least_error(inputs, weight, kept)[0])
    assert first == torch.stack(costs).argmin()


def test_a_lot_costs_what_its_inputs_cost_together():
    inputs, covariance, weight = make(5)
    removal = plan_removal(weight, covariance, lot=4)
    torch.testing.assert_close(removal.errors[4], least_error(inputs, weight, removal.kept(4))[0].item())
    assert all(low <= high for low, high in zip(removal.errors, removal.errors[1:], strict=False))


def test_inputs_that_the_others_add_up_to_cost_nothing():
    _, covariance, weight = make(6, rank=3)
    covariance = covariance + 1e-10 * torch.eye(8, dtype=torch.float64)
    removal = plan_removal(weight, covariance)
    everything = removal.errors[-1]
    assert removal.errors[5] < 1e-6 * everything < 1e-2 * removal.errors[6]


def test_the_best_set_is_found_where_inputs_do_not_depend_on_each_other():
    _, _, weight = make(7)
    covariance = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
    removal = plan_removal(weight, covariance)
    for count in range(1, 8):
        errors = {
            gone: 0.5 * (weight[:, list(gone)].square() @ covariance.diagonal()[list(gone)]).sum().item()
            for gone in combinations(range(8), count)
        }
        assert set(removal.order[:count]) == set(min(errors, key=errors.__getitem__))


def test_the_bias_takes_over_the_mean_of_what_is_lost():
    inputs, covariance, weight = make(8)
    linear = nn.Linear(8, 5, dtype=torch.float64)
    linear.weight.data.copy_(weight)
    before = linear(inputs)
    kept = [0, 3, 4]
    correct_linear(linear, covariance, inputs.mean(0), kept)
    assert (linear.weight[:, [1, 2, 5, 6, 7]] == 0).all()
    after = linear(inputs)
    torch.testing.assert_close(after.mean(0), before.mean(0))
    error = 0.5 * (after - before).square().sum(1).mean()
    torch.testing.assert_close(error, least_error(inputs, weight, kept)[0])
    correct_linear(linear, covariance, inputs.mean(0), [])
    torch.testing.assert_close(linear(inputs), before.mean(0).expand(TOKENS, 5))


def test_constant_inputs_can_be_inverted():
    torch.linalg.cholesky(damped(torch.zeros(3, 3, dtype=torch.float64)))
    covariance = make(9)[1]
    torch.testing.assert_close(
        damped(covariance) - covariance, 0.01 * covariance.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    )
