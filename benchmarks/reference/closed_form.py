"""The vocabulary loss and its gradients, written out from the formula in float64 without autograd.

Every fast implementation is compared with this one.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def vocabulary_loss(
    hs: Tensor,
    ws: Tensor,
    bs: Tensor | None,
    ht: Tensor,
    wt: Tensor,
    bt: Tensor | None,
    labels: Tensor,
    temperature: float,
    kl_weight: float,
    mlm_weight: float,
    kl_tokens: str,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the vocabulary loss and its gradients in float64.

    The arguments are those of kernels.fused_linear. Source: Hinton et al. 2015,
    section 2.1; Sanh et al. 2019, section 2.

    Returns:
        (kl_sum, mlm_sum, gradients of the student's hidden states, weight and bias).
    """
    hs, ws, ht, wt = (x.detach().double() for x in (hs, ws, ht, wt))
    z = hs @ ws.T + (0 if bs is None else bs.detach().double())
    t = ht @ wt.T + (0 if bt is None else bt.detach().double())
    real = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    masked = (labels >= 0) & real
    kl_rows = (masked if kl_tokens == "masked" else real).double()
    p, q = (t / temperature).softmax(-1), (z / temperature).softmax(-1)
    rows = p * ((t / temperature).log_softmax(-1) - (z / temperature).log_softmax(-1))
    kl = temperature**2 * (rows.sum(-1) * kl_rows).sum()
    mlm = -z.log_softmax(-1)[masked, labels[masked]].sum()
    onehot = torch.zeros_like(z)
    onehot[masked, labels[masked]] = 1
    dz = (
        kl_weight * temperature * (q - p) * kl_rows[:, None]
        + mlm_weight * (z.softmax(-1) - onehot) * masked.double()[:, None]
    )
    return kl, mlm, dz @ ws, dz.T @ hs, dz.sum(0)


def worst(errors: Iterable[float]) -> float:
    """Return the largest error, or nan if one is nan, which Python's max may let through."""
    return float(np.max(list(errors)))


def relative(x: Tensor, y: Tensor) -> float:
    """Return ‖x − y‖ ÷ ‖y‖."""
    return float((x.detach().double() - y.double()).norm() / y.double().norm().clamp(min=1e-300))
