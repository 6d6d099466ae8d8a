"""The fused losses and their gradients, written out from the formulas in float64 without autograd.

Every fast implementation is compared with this one.
"""

from collections.abc import Iterable, Iterator, Sequence

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


def relation_kl(
    student: tuple[Tensor, Tensor],
    teachers: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float],
    mask: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute Σ KL(Σ_k w_k softmax(t_k) ‖ softmax(s)) over the rows of all scores, and its gradients, in float64.

    The arguments are those of losses.relations.ensemble_relation_kl, with weights that add up to 1.
    Source: Wang et al. 2021 (MiniLMv2), section 3.1.

    Returns:
        (loss, gradient of a, gradient of b), where a and b are taken as different tensors.
    """
    student = tuple(x.detach().double() for x in student)
    loss, gradients = student[0].new_zeros(()), [torch.zeros_like(x) for x in student]
    for b, h, tokens in _visible_groups(student[0].shape, mask, documents):
        x, y = (s[b, h, tokens] for s in student)
        scores = [u[b, h, tokens].double() @ v[b, h, tokens].double().T / u.shape[-1] ** 0.5 for u, v in teachers]
        p = sum(w * score.softmax(-1) for w, score in zip(weights, scores, strict=True))
        s = x @ y.T / x.shape[-1] ** 0.5
        loss += (torch.xlogy(p, p) - p * s.log_softmax(-1)).sum()
        d_scores = (s.softmax(-1) - p) / x.shape[-1] ** 0.5
        gradients[0][b, h, tokens], gradients[1][b, h, tokens] = d_scores @ y, d_scores.T @ x
    return loss, *gradients


def attention_score_mse(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    documents: Tensor | None = None,
    *,
    per_token: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute Σ (t_ij − s_ij)² over all scores, and its gradients, in float64.

    With `per_token` it is Σ_i of the mean over the tokens j that i sees. The other arguments are those of
    losses.relations.attention_score_mse. Source: Jiao et al. 2020
    (TinyBERT), section 3.1, equation 7.

    Returns:
        (loss, gradient of q, gradient of k), where q and k are taken as different tensors.
    """
    student = tuple(x.detach().double() for x in student)
    loss, gradients = student[0].new_zeros(()), [torch.zeros_like(x) for x in student]
    for b, h, tokens in _visible_groups(student[0].shape, mask, documents):
        x, y = (s[b, h, tokens] for s in student)
        u, v = (t[b, h, tokens].double() for t in teacher)
        error = x @ y.T / x.shape[-1] ** 0.5 - u @ v.T / u.shape[-1] ** 0.5
        share = 1 / len(tokens) if per_token else 1
        loss += error.square().sum() * share
        d_scores = 2 * error / x.shape[-1] ** 0.5 * share
        gradients[0][b, h, tokens], gradients[1][b, h, tokens] = d_scores @ y, d_scores.T @ x
    return loss, *gradients


def _visible_groups(
    shape: Sequence[int], mask: Tensor | None, documents: Tensor | None
) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (sequence, head, tokens): the real tokens that see each other, of each document of each sequence."""
    for b in range(shape[0]):
        real = [i for i in range(shape[2]) if mask is None or mask[b, i]]
        numbers = [0 if documents is None else int(documents[b, i]) for i in real]
        for number in sorted(set(numbers)):
            tokens = [i for i, of in zip(real, numbers, strict=True) if of == number]
            yield from ((b, h, tokens) for h in range(shape[1]))


def worst(errors: Iterable[float]) -> float:
    """Return the largest error, or nan if one is nan, which Python's max may let through."""
    return float(np.max(list(errors)))


def relative(x: Tensor, y: Tensor) -> float:
    """Return ‖x − y‖ ÷ ‖y‖."""
    return float((x.detach().double() - y.double()).norm() / y.double().norm().clamp(min=1e-300))
