"""Linear layers in two thin factors, of which the start keeps what the layer's own inputs make of its weights.

The singular value decomposition of W alone ignores that inputs lie mostly in few directions. With S Sᵀ = E[x xᵀ],
that of W S gives the factors of the least E|W x - W' x|². Source: Wang et al. 2024 (SVD-LLM), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.utils.errors import UserError

DAMPING = 1e-6  # of the mean of the diagonal, added to it: few inputs may not reach every direction
FACTORS = ("down.weight", "up.weight", "up.bias")


class LowRankLinear(nn.Module):
    """A linear layer [in → rank → out] without anything between its factors."""

    def __init__(self, down: Tensor, up: Tensor, bias: Tensor | None):
        """Make it of factors down [rank, in] and up [out, rank], and a bias [out]."""
        super().__init__()
        rank, inner = down.shape
        self.down = nn.Linear(inner, rank, bias=False)
        self.up = nn.Linear(rank, len(up), bias=bias is not None)
        with torch.no_grad():
            self.down.weight.copy_(down)
            self.up.weight.copy_(up)
            if bias is not None:
                self.up.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def activation_aware_factors(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return (down [rank, in], up [out, rank], E|(W - up·down) x|²), in float64.

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
    # balanced factors, which an optimizer moves at one pace
    scale = values[:rank].sqrt()
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


@torch.no_grad()
def low_rank(model: PreTrainedModel, rank: int, moments: Mapping[str, Tensor]) -> float:
    """Put two factors in place of each linear layer that they make smaller, in place; return the mean relative error.

    The error of a layer is E|(W - W') x|² / E|W x|².

    Args:
        model: The model, on the CPU.
        rank: The rank of all of them.
        moments: As `input_moments` returns them.

    Raises:
        UserError: The rank makes no layer smaller.
    """
    errors = []
    for name, linear in list(_linears(model)):
        if rank * (linear.in_features + linear.out_features) >= linear.weight.numel():
            continue
        down, up, error = activation_aware_factors(linear.weight, moments[name], rank)
        whole = linear.weight.double()
        errors.append(error / ((whole @ moments[name]) * whole).sum().item())
        model.set_submodule(name, LowRankLinear(down, up, linear.bias).to(linear.weight.dtype).train(linear.training))
    if not errors:
        raise UserError(f"rank {rank}: two factors of this rank make no layer smaller; give a smaller one")
    return sum(errors) / len(errors)


def multiply_out(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the stock class: products in place of factors, computed in float64.

    Args:
        weights: The parameters of a model that `low_rank` has changed, by name.
    """
    down, up, bias = FACTORS
    whole: dict[str, Tensor] = {}
    for name, value in weights.items():
        layer = name.removesuffix(down).removesuffix(up).removesuffix(bias)
        if f"{layer}{down}" not in weights:
            whole[name] = value
        elif name.endswith(up):
            product = value.double() @ weights[f"{layer}{down}"].double()
            whole[f"{layer}weight"] = product.to(value.dtype)
        elif name.endswith(bias):
            whole[f"{layer}bias"] = value
    return whole


def _linears(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear]]:
    within = {id(module) for layer in get_family(model).get_layers(model) for module in layer.modules()}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and id(module) in within:
            yield name, module
