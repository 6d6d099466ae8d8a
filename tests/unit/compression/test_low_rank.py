"""Test that factors of a linear layer keep what its inputs make of it, and that an export multiplies them out."""

import copy

import pytest
import torch
from torch import nn

from ds_distill.compression.low_rank import (
    LowRankLinear,
    activation_aware_factors,
    input_moments,
    low_rank,
    multiply_out,
)
from ds_distill.models.student import build_student
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import tiny_bert, tokens


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> torch.Tensor:
    """Return [500, 16], some directions of which are a hundred times as long as others."""
    return drawn(500, 16, seed=1) * torch.logspace(0, -2, 16, dtype=torch.float64) @ drawn(16, 16, seed=2)


def moment_of(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


@pytest.mark.parametrize(("out", "inner"), [(16, 16), (24, 16), (10, 16)])
def test_the_full_rank_gives_the_weights_back(out, inner):
    weight = drawn(out, inner)
    down, up, error = activation_aware_factors(weight, moment_of(inputs()), min(out, inner))
    torch.testing.assert_close(up @ down, weight, rtol=1e-8, atol=1e-8)
    assert error == 0


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_error_is_that_of_the_dropped_values_and_less_than_a_plain_decompositions(rank):
    weight, x = drawn(24, 16), inputs()
    down, up, error = activation_aware_factors(weight, moment_of(x), rank)

    def lost(product: torch.Tensor) -> float:
        return (x @ (weight - product).T).square().sum(1).mean().item()

    assert lost(up @ down) == pytest.approx(error, rel=1e-3)  # the moment is damped
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    assert error < 0.9 * lost(left[:, :rank] * values[:rank] @ right[:rank])
    # where all directions are alike, both are one
    down, up, _ = activation_aware_factors(weight, torch.eye(16), rank)
    torch.testing.assert_close(up @ down, left[:, :rank] * values[:rank] @ right[:rank], rtol=1e-6, atol=1e-6)


def test_inputs_that_reach_few_directions_are_no_trouble():
    weight, moment = drawn(24, 16), moment_of(drawn(3, 16, seed=5))
    down, up, _ = activation_aware_factors(weight, moment, 3)
    assert ((weight - up @ down) @ moment).abs().max() < 1e-3 * (weight @ moment).abs().max()
    assert torch.isfinite(activation_aware_factors(weight, torch.zeros(16, 16), 2)[0]).all()


@pytest.mark.parametrize("shape", [{}, {"family": "bert"}, {"num_hidden_groups": 1}])
def test_a_student_trains_in_factors_and_leaves_as_its_stock_class(shape):
    student = build_student(tiny_bert(4), num_layers=2, dropout=0.0, **shape)
    stock = copy.deepcopy(student)
    moments = input_moments(student, lambda: student(tokens()))
    before = sum(parameter.numel() for parameter in student.parameters())
    assert 0 < low_rank(student, 6, moments) < 1
    assert sum(parameter.numel() for parameter in student.parameters()) < before
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-2)
    student(tokens()).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    optimizer.step()
    weights = dict(student.named_parameters())
    missing, unexpected = stock.load_state_dict(multiply_out(weights), strict=False)
    tied = {name for name, _ in stock.named_parameters(remove_duplicate=False)} - {
        n for n, _ in stock.named_parameters()
    }
    assert not unexpected and set(missing) <= tied
    with torch.no_grad():
        expected = student.eval()(tokens()).logits
        torch.testing.assert_close(stock.eval()(tokens()).logits, expected, rtol=1e-4, atol=1e-5)


def test_only_layers_that_become_smaller_change():
    student = build_student(tiny_bert(4), num_layers=1, family="bert")
    moments = input_moments(student, lambda: student(tokens()))
    low_rank(student, 17, moments)  # 17 · (32 + 48) < 32 · 48, but 17 · 64 > 32 · 32
    kinds = {name: type(module) for name, module in student.named_modules()}
    assert kinds["bert.encoder.layer.0.attention.self.query"] is nn.Linear
    assert kinds["bert.encoder.layer.0.intermediate.dense"] is LowRankLinear
    with pytest.raises(UserError, match="rank 20: two factors of this rank make no layer smaller"):
        low_rank(build_student(tiny_bert(4), num_layers=1), 20, moments)
