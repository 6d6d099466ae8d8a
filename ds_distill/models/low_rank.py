"""Linear layers in two thin factors, whose start keeps what the layer's own inputs make of its weights.

The singular value decomposition of W alone ignores that inputs lie mostly in few directions. With S Sᵀ = E[x xᵀ],
that of W S gives the factors of the least E|W x - W' x|². Source: Wang et al. 2024 (SVD-LLM), section 3.1.

A student is trained in factors. Its folder holds their products, so that the stock class loads it, and their rank in
`config.linear_rank`, so that they can be restored where the model is trained further or exported to another runtime.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.utils.console import log, spinner
from ds_distill.utils.errors import UserError

KEY = "linear_rank"
DAMPING = 1e-6  # of the mean of the diagonal, added to it: few inputs may not reach every direction


class LowRankLinear(nn.Module):
    """A linear layer [in → rank → out] without anything between its factors."""

    def __init__(self, inner: int, rank: int, outer: int, bias: bool):
        super().__init__()
        self.down = nn.Linear(inner, rank, bias=False)
        self.up = nn.Linear(rank, outer, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def get_rank(config: PretrainedConfig) -> int | None:
    """Return the rank of the factors that the linear layers of a model of this config are trained in; None for none."""
    return cast("int | None", getattr(config, KEY, None))


def set_rank(config: PretrainedConfig, rank: int | None) -> None:
    """State the rank in `config`, in place."""
    vars(config).pop(KEY, None)
    if rank is not None:
        setattr(config, KEY, rank)


def put_factors(model: PreTrainedModel) -> None:
    """Put two factors in place of each linear layer that has them by the model's config, in place, with random values.

    These are the linear layers within the encoder's layers that factors make smaller.

    Raises:
        UserError: There are none.
    """
    rank = get_rank(model.config)
    if rank is not None:
        for name, linear in _find_linears(model, rank):
            model.set_submodule(name, _like(linear, rank))


@torch.no_grad()
def factor_linears(model: PreTrainedModel, rank: int, moments: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """Put the best two factors in place of each linear layer that they make smaller, in place, and state their rank.

    Returns:
        E|W x - W' x|² / E|W x|² of each of these layers, by name.

    Args:
        model: The model, on the CPU.
        rank: The rank.
        moments: As `input_moments` returns them; None for isotropic inputs, which are enough where
            the weights are products of factors of this rank.

    Raises:
        UserError: The rank makes no layer smaller.
    """
    errors = {}
    for name, linear in _find_linears(model, rank):
        moment = torch.eye(linear.in_features) if moments is None else moments[name]
        down, up, error = activation_aware_factors(linear.weight, moment, rank)
        whole = linear.weight.double()
        errors[name] = error / ((whole @ moment.double()) * whole).sum().clamp_min(1e-300).item()
        factors = _like(linear, rank)
        factors.down.weight.copy_(down)
        factors.up.weight.copy_(up)
        if linear.bias is not None:
            factors.up.bias.copy_(linear.bias)
        model.set_submodule(name, factors)
    set_rank(model.config, rank)
    return errors


def restore_factors(model: PreTrainedModel, rank: int | None) -> PreTrainedModel:
    """Return a model as it was trained: with factors in place of the products that its folder holds, if it does.

    Weights that are not products of this rank up to rounding stay whole, with a line that says so: another program may
    have trained them since.

    Args:
        model: A model as it is loaded, on the CPU. It is left untouched.
        rank: The rank that its folder states; None for none.

    Raises:
        UserError: The rank makes no layer smaller.
    """
    if rank is None:
        return model
    factored = copy.deepcopy(model)
    try:
        with spinner(f"restoring the factors of rank {rank}"):
            errors = factor_linears(factored, rank)
    except UserError as unfit:
        raise UserError(f"config.json: {unfit}, or remove it") from unfit
    if all(error <= _rounding_error(model.get_submodule(name)) for name, error in errors.items()):
        return factored
    log(f"config.json states linear_rank = {rank}, but the weights are not products of that rank: they stay whole")
    return model


def _rounding_error(linear: nn.Module) -> float:
    """Return the most of the square of a layer's weights, relative, that rounding can have changed.

    Rounding changes a number by half of the dtype's epsilon at most. The weights are fp32 here, but those that another
    dtype holds exactly have been saved in it.
    """
    weight = linear.get_parameter("weight").detach()
    saved_in = (dtype for dtype in (torch.bfloat16, torch.float16) if torch.equal(weight.to(dtype).float(), weight))
    return (torch.finfo(next(saved_in, torch.float32)).eps / 2) ** 2


def count_with_factors(model: PreTrainedModel, rank: int | None) -> int:
    """Return the number of parameters of a model, as it is loaded, with two factors of `rank` in place of products.

    Args:
        model: The model; tied parameters count once.
        rank: The rank that its folder states; None for none.
    """
    if rank is None:
        return model.num_parameters()
    saved = (linear.weight.numel() - _count_factors(linear, rank) for _, linear in _linears(model))
    return model.num_parameters() - sum(difference for difference in saved if difference > 0)


@contextlib.contextmanager
def multiplied_out(model: PreTrainedModel) -> Iterator[None]:
    """Have linear layers in place of factors meanwhile, their products computed in float64.

    This is the inverse of `factor_linears`, except that the config still states the rank.
    """
    factored = [(name, module) for name, module in model.named_modules() if isinstance(module, LowRankLinear)]
    for name, factors in factored:
        model.set_submodule(name, _product(factors))
    try:
        yield
    finally:
        for name, factors in factored:
            model.set_submodule(name, factors)


@torch.no_grad()
def _product(factors: LowRankLinear) -> nn.Linear:
    down, up = factors.down.weight, factors.up.weight
    with torch.device("meta"):  # its values are made here
        linear = nn.Linear(down.shape[1], len(up), factors.up.bias is not None)
    linear.weight = nn.Parameter((up.double() @ down.double()).to(up.dtype))
    if factors.up.bias is not None:
        linear.bias = factors.up.bias
    return linear.train(factors.training)


def activation_aware_factors(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return (down [rank, in], up [out, rank], E|W x - up·down x|²), in float64.

    The error is the sum of the squares of the singular values of W S that are dropped.

    Args:
        weight: W [out, in].
        moment: E[x xᵀ] [in, in], of the layer's inputs.
        rank: 1 to min(in, out).
    """
    moment = moment.double()
    damping = DAMPING * moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    root = torch.linalg.cholesky(moment + damping * torch.eye(len(moment), dtype=torch.float64))
    left, values, right = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    # Balanced factors are moved at one pace by an optimizer.
    scale = values[:rank].sqrt()
    # The sign of a singular vector is arbitrary, and every rank must find the same.
    scale = scale * left[:, :rank].gather(0, left[:, :rank].abs().argmax(0, keepdim=True))[0].sign()
    down = torch.linalg.solve_triangular(root, right[:rank] * scale[:, None], upper=False, left=False)
    return down, left[:, :rank] * scale, values[rank:].square().sum().item()


@torch.no_grad()
def input_moments(model: PreTrainedModel, run: Callable[[], object]) -> dict[str, Tensor]:
    """Return E[x xᵀ] [in, in], float64, of the inputs of each linear layer within the encoder's layers, by its name.

    Args:
        model: The model.
        run: Runs it on some text, without padding.
    """
    moments: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, x: Tensor) -> None:
        rows = x.detach().double().flatten(0, -2)
        moments[name] = moments.get(name, 0) + rows.T @ rows
        counts[name] = counts.get(name, 0) + len(rows)

    hooks = [
        linear.register_forward_pre_hook(lambda module, inputs, name=name: add(name, inputs[0]))
        for name, linear in _linears(model)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: moment / counts[name] for name, moment in moments.items()}


def _linears(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    within = {id(module) for layer in get_family(model).get_layers(model) for module in layer.modules()}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and id(module) in within:
            yield name, module


def _count_factors(linear: nn.Linear, rank: int) -> int:
    """Return the number of weights of two factors in place of a layer's."""
    return rank * (linear.in_features + linear.out_features)


def _find_linears(model: PreTrainedModel, rank: int) -> list[tuple[str, nn.Linear]]:
    """Return the linear layers, by name, that two factors of this rank make smaller; UserError where there are none."""
    linears = [
        (name, linear) for name, linear in _linears(model) if _count_factors(linear, rank) < linear.weight.numel()
    ]
    if not linears:
        raise UserError(
            f"linear_rank = {rank}: two factors of this rank make no linear layer of the model smaller; give a smaller "
            "rank"
        )
    return linears


def _like(linear: nn.Linear, rank: int) -> LowRankLinear:
    with torch.device(linear.weight.device):
        factors = LowRankLinear(linear.in_features, rank, linear.out_features, linear.bias is not None)
    return factors.to(linear.weight.dtype).train(linear.training)
