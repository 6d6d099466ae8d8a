"""Losses between attention scores, and between their distributions: the definitions, on whole score matrices.

They differentiate by autograd and hold several [L, L] matrices per head. The losses that training uses give
the same without these matrices, see `ds_distill.losses.relations`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def plain_relation_kl(
    student: tuple[Tensor, Tensor],
    teachers: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float],
    real: Tensor | None,
    documents: Tensor | None,
) -> Tensor:
    """Return Σ KL(p̄_i ‖ softmax_j(s_i)) over sequences, heads and real tokens i, with p̄ = Σ_k w_k softmax_j(t_k,i).

    s_ij = a_i·b_j / √d, and j runs over the real tokens of i's document.

    Args:
        student: (a, b), each [B, R, L, d].
        teachers: The same of each teacher, whose d may differ.
        weights: The weight w of each teacher; they add up to 1.
        real: [B, L] bool, False for padding. None where all tokens are real.
        documents: [B, L] int, or None where a sequence is one document.
    """
    real = _all_real(student[0]) if real is None else real
    seen = _seen(real, documents)
    log_q = _scores(*student, real).masked_fill(~seen, float("-inf")).log_softmax(-1)
    log_ps = [_scores(*teacher, real).masked_fill(~seen, float("-inf")).log_softmax(-1) for teacher in teachers]
    p = torch.stack([weight * log_p.exp() for weight, log_p in zip(weights, log_ps, strict=True)]).sum(0)
    log_p = log_ps[0] if len(log_ps) == 1 else p.log()
    counted = seen & real[:, None, :, None] & (p > 0)  # the limit of p log p is 0
    return (p * (log_p - log_q).masked_fill(~counted, 0.0)).masked_fill(~counted, 0.0).sum()


def plain_score_error(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    real: Tensor | None,
    documents: Tensor | None,
    per_token: bool = False,
) -> Tensor:
    """Return Σ (t_ij − s_ij)² over sequences, heads and pairs of real tokens i, j of one document.

    With `per_token`, each token i has the mean over the tokens j that it sees. The other arguments are those of
    plain_relation_kl.
    """
    real = _all_real(student[0]) if real is None else real
    counted = _seen(real, documents) & real[:, None, :, None]
    errors = (_scores(*teacher, real) - _scores(*student, real)).masked_fill(~counted, 0.0).square()
    return (errors / counted.sum(-1, keepdim=True).clamp(min=1)).sum() if per_token else errors.sum()


def _all_real(x: Tensor) -> Tensor:
    return torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)


def _scores(a: Tensor, b: Tensor, real: Tensor) -> Tensor:
    """Return a_i·b_j / √d, [B, R, L, L], in fp32 at least; padding, whatever it holds, counts as 0."""
    padding = ~real[:, None, :, None]
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(padding, 0.0) for x in (a, b))
    return a @ b.mT / a.shape[-1] ** 0.5


def _seen(real: Tensor, documents: Tensor | None) -> Tensor:
    """Return whether token i sees token j, [B, 1, L, L] bool; padding sees itself, since a softmax needs a token."""
    seen = real[:, :, None] & real[:, None, :]
    if documents is not None:
        seen = seen & (documents[:, :, None] == documents[:, None, :])
    return (seen | torch.eye(real.shape[1], dtype=torch.bool, device=real.device)).unsqueeze(1)
