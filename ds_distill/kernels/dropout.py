"""Dropout whose mask is a function of two seeds and the position.

Inside compiled code it costs a few instructions. torch's CPU generator draws one number after
another, which takes 6 % of a step at BERT-base size and cannot be fused with the operators around
it.
"""

import torch
from torch import Tensor, nn


def counter_dropout(x: Tensor, p: float) -> Tensor:
    """Return x [...] (float) with a share p of its elements zero and the others divided by 1 − p.

    The gradient has the same elements zero. The seeds come from torch's default generator, so
    torch.manual_seed decides the mask. p is rounded to a multiple of 2⁻³¹. Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3", section 2, describes generators of this kind. The
    mixing is of the family of MurmurHash3's finalizer.
    """
    seeds = torch.randint(-(2**31), 2**31 - 1, (2,), dtype=torch.int32)
    kept = _mixed(x.shape, seeds[0], seeds[1]) >= round(p * 2**31)
    return torch.where(kept, x * (1 / (1 - p)), 0.0)


def _mixed(shape: torch.Size, first: Tensor, second: Tensor) -> Tensor:
    """Return evenly spread int32 in [0, 2³¹), one per position; masks clear the bits that torch's signed shifts add."""
    x = torch.arange(shape.numel(), dtype=torch.int32).view(shape) ^ first
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975
    x = (x ^ ((x >> 16) & 0xFFFF)) ^ second
    x = x * -0x61C88647
    return (x ^ ((x >> 15) & 0x1FFFF)) & 0x7FFFFFFF


class CounterDropout(nn.Module):
    """A replacement for nn.Dropout(p)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return counter_dropout(x, self.p) if self.training and self.p else x
