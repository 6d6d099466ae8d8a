"""The optimal brain surgeon: which inputs of a linear layer to remove, and what the others have to make up for.

A layer's output changes by (W' − W)x. Its mean square over a text is (W' − W) C (W' − W)ᵀ, summed over rows, where C is
the covariance of the inputs x, once the bias takes over the mean of the change. Among all W' in which the removed
columns are 0, a closed form gives the best; what remains of the error is their saliency.

Source: Hassibi and Stork 1993; for structures Kurtic et al. 2023 (ZipLM), sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

DAMPING = 0.01  # of the mean variance, added to every input's, so that the inverse exists
LOT = 16  # single columns that are removed at once, before the saliencies of the others are computed anew


@dataclass(frozen=True)
class Removal:
    """In what order structures go, and what that costs.

    Attributes:
        order: The structures by number, the first to go first.
        errors: errors[n] is half the mean squared error of the output when the first n of them are gone and the others
            are corrected, [structures + 1].
    """

    order: list[int]
    errors: list[float]

    def kept(self, count: int) -> list[int]:
        """Return the structures that are left when `count` are, in ascending order."""
        return sorted(self.order[len(self.order) - count :])


def damped(covariance: Tensor) -> Tensor:
    """Return a covariance [in, in] with DAMPING of its mean variance, or of 1 where all inputs are constant."""
    variance = covariance.diagonal().mean()
    step = DAMPING * (variance if variance > 0 else 1.0)
    return covariance + step * torch.eye(len(covariance), dtype=covariance.dtype)


def plan_removal(weight: Tensor, covariance: Tensor, size: int = 1, lot: int = 1) -> Removal:
    """Return the order in which structures of inputs go, each time those of the least saliency.

    Args:
        weight: [out, in], fp64. An output that counts more has a row of larger numbers.
        covariance: [in, in], fp64, positive definite.
        size: The inputs of one structure, which follow each other: 1, or the width of a head.
        lot: How many structures are removed at once.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    left = torch.arange(weight.shape[1] // size)  # the structures whose inputs `weight` and `inverse` have
    order, errors = list[int](), [0.0]
    while len(left):
        gone = _saliencies(weight, inverse, size).argsort(stable=True)[:lot]
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[gone] = False
        inputs, others = (_inputs_of(structures, size) for structures in (gone, stays.nonzero().flatten()))
        removed, between = weight[:, inputs], inverse[inputs][:, others]
        solved = torch.linalg.solve(inverse[inputs][:, inputs], torch.cat([removed.T, between], 1))
        by_weight, by_others = solved.split([len(weight), len(others)], 1)
        error = 0.5 * float((removed.T * by_weight).sum())
        weight = weight[:, others] - removed @ by_others
        inverse = inverse[others][:, others] - between.T @ by_others
        order += left[gone].tolist()
        left = left[stays]
        # Within a lot the errors of its first ones alone are not known: they rise evenly.
        errors += [errors[-1] + error * place / len(gone) for place in range(1, len(gone) + 1)]
    return Removal(order, errors)


def _inputs_of(structures: Tensor, size: int) -> Tensor:
    """Return the inputs of structures, each of which has `size` that follow each other."""
    return (structures[:, None] * size + torch.arange(size)).flatten()


def _saliencies(weight: Tensor, inverse: Tensor, size: int) -> Tensor:
    """Return ½ Σ_rows w_S (H⁻¹_SS)⁻¹ w_Sᵀ for each structure S, [structures]."""
    if size == 1:
        return 0.5 * weight.square().sum(0) / inverse.diagonal()
    count = weight.shape[1] // size
    blocks = inverse.view(count, size, count, size)[torch.arange(count), :, torch.arange(count)]
    rows = weight.view(len(weight), count, size).permute(1, 2, 0)  # [structures, size, out]
    return 0.5 * (rows * torch.linalg.solve(blocks, rows)).sum((1, 2))


def corrected(weight: Tensor, covariance: Tensor, kept: Sequence[int]) -> Tensor:
    """Return the columns [out, kept] that replace a weight best when its other inputs are gone.

    Args:
        weight: [out, in], fp64.
        covariance: [in, in], fp64, positive definite.
        kept: The inputs that stay.
    """
    stays = torch.tensor(list(kept), dtype=torch.long)
    goes = torch.ones(weight.shape[1], dtype=torch.bool)
    goes[stays] = False
    factor = torch.linalg.cholesky(covariance[stays][:, stays])
    share = torch.cholesky_solve(covariance[stays][:, goes], factor)  # [kept, gone]
    return weight[:, stays] + weight[:, goes] @ share.T


@torch.no_grad()
def correct_linear(linear: nn.Linear, covariance: Tensor, mean: Tensor, kept: Sequence[int]) -> None:
    """Give a linear layer, in place, weights with which the inputs that are not kept can be left out.

    Its bias takes over the mean of what is lost. The columns of the others are 0.

    Args:
        linear: The layer, with a bias.
        covariance: [in, in], fp64, positive definite, of its inputs.
        mean: [in], fp64, of its inputs.
        kept: The inputs that stay.
    """
    before = linear.weight.double()
    after = torch.zeros_like(before)
    after[:, list(kept)] = corrected(before, covariance, kept)
    linear.bias.add_(((before - after) @ mean).to(linear.bias.dtype))
    linear.weight.copy_(after)
