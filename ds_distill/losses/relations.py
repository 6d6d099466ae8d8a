"""Losses between the relations of tokens: attention maps, self-relations of queries, keys and values, raw scores."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ds_distill.kernels.relation_ops import relation_loss


def relation_kl(
    student_a: Tensor,
    student_b: Tensor,
    teacher_a: Tensor,
    teacher_b: Tensor,
    *,
    token_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Return the KL divergence of the student's relations from the teacher's, summed, in nats.

    The result is Σ KL(softmax_j(t_i·t_j / √d_T) ‖ softmax_j(s_i·s_j / √d_S)) over sequences, heads and
    real tokens i, where j runs over the real tokens of i's document, a gives the vectors of i and b
    those of j. It is a scalar in fp32 (float64 for float64 inputs), which the caller divides by its
    counts, and differentiable once, in the student's tensors.

    Args:
        student_a: [B, R, L, d_S], any float dtype.
        student_b: [B, R, L, d_S]; the same tensor for a self-relation, which then costs less.
        teacher_a: [B, R, L, d_T], any float dtype. No gradient flows into the teacher's tensors.
        teacher_b: [B, R, L, d_T].
        token_mask: [B, L] bool, False for padding. What padding holds is not read.
        document_ids: [B, L] int; a token sees the tokens with its own number only.

    Raises:
        ValueError: Shapes or dtypes do not fit.

    Source: Wang et al. 2021 (MiniLMv2), section 3.1, with sums in place of means; with queries and
    keys, Wang et al. 2020 (MiniLM), section 3.1.
    """
    return ensemble_relation_kl(
        student_a, student_b, [(teacher_a, teacher_b)], token_mask=token_mask, document_ids=document_ids
    )


def ensemble_relation_kl(
    student_a: Tensor,
    student_b: Tensor,
    teachers: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float] | None = None,
    *,
    token_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Return the KL divergence of the student's relations from the mean of several teachers' relations, summed.

    It is `relation_kl` with Σ_k w_k softmax_j(t_k,i·t_k,j / √d_k) in place of the teacher's distribution.

    Args:
        student_a: [B, R, L, d_S].
        student_b: [B, R, L, d_S].
        teachers: The pair (a, b) of each teacher, both [B, R, L, d_k]; the widths may differ.
        weights: A number above 0 for each teacher; they are divided by their sum. None weighs all alike.
        token_mask: [B, L] bool, False for padding.
        document_ids: [B, L] int.

    Raises:
        ValueError: Shapes or dtypes do not fit, or the weights are not one positive number per teacher.
    """
    _check_shapes((student_a, student_b), teachers, token_mask, document_ids)
    weights = [1.0] * len(teachers) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(teachers) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights {weights}: give one positive number for each of the {len(teachers)} teachers")
    shares = [weight / sum(weights) for weight in weights]
    return relation_loss((student_a, student_b), teachers, shares, token_mask, document_ids)


def attention_score_mse(
    student_q: Tensor,
    student_k: Tensor,
    teacher_q: Tensor,
    teacher_k: Tensor,
    *,
    token_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Return the squared error of the student's attention scores before softmax, summed.

    The result is Σ (t_i·t_j / √d_T − s_i·s_j / √d_S)² over sequences, heads and pairs of real tokens i, j
    of one document, where q gives the vectors of i and k those of j. It is a scalar in fp32 (float64 for
    float64 inputs), which the caller divides by its counts, and differentiable once, in the student's
    tensors.

    Args:
        student_q: [B, R, L, d_S], any float dtype.
        student_k: [B, R, L, d_S].
        teacher_q: [B, R, L, d_T], any float dtype. No gradient flows into the teacher's tensors.
        teacher_k: [B, R, L, d_T].
        token_mask: [B, L] bool, False for padding. What padding holds is not read.
        document_ids: [B, L] int; pairs of tokens with different numbers do not count.

    Raises:
        ValueError: Shapes or dtypes do not fit.

    Source: Jiao et al. 2020 (TinyBERT), section 3.1, equation 7, with sums in place of means.
    """
    _check_shapes((student_q, student_k), [(teacher_q, teacher_k)], token_mask, document_ids)
    return relation_loss((student_q, student_k), [(teacher_q, teacher_k)], None, token_mask, document_ids)


def attention_score_mse_per_token(
    student_q: Tensor,
    student_k: Tensor,
    teacher_q: Tensor,
    teacher_k: Tensor,
    *,
    token_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """Return `attention_score_mse` with, for each token, the mean over the real tokens that it sees.

    For sequences of one length this is TinyBERT's mean over the entries of the attention matrix, times the number of
    tokens, and it depends on no other sequence of the batch. The arguments are those of attention_score_mse.
    """
    _check_shapes((student_q, student_k), [(teacher_q, teacher_k)], token_mask, document_ids)
    teachers = [(teacher_q, teacher_k)]
    return relation_loss((student_q, student_k), teachers, None, token_mask, document_ids, per_token=True)


def _check_shapes(
    student: tuple[Tensor, Tensor],
    teachers: Sequence[tuple[Tensor, Tensor]],
    token_mask: Tensor | None,
    document_ids: Tensor | None,
) -> None:
    if not teachers:
        raise ValueError("teachers is empty: give at least one pair of tensors")
    shape = student[0].shape
    if len(shape) != 4:
        raise ValueError(f"student {list(shape)}: must be [sequences, heads, tokens, width]")
    for who, (a, b) in [("student", student), *(("teacher", pair) for pair in teachers)]:
        if a.shape != b.shape or a.shape[:-1] != shape[:-1] or a.shape[-1] == 0:
            raise ValueError(
                f"{who} {list(a.shape)} and {list(b.shape)}: must both be [{shape[0]}, {shape[1]}, {shape[2]}, width], "
                "with a width above 0"
            )
        if not (a.is_floating_point() and b.is_floating_point()):
            raise ValueError(f"{who}: {a.dtype} and {b.dtype} are not both floating-point")
    tokens = (shape[0], shape[2])
    if token_mask is not None and (token_mask.shape != tokens or token_mask.dtype != torch.bool):
        raise ValueError(f"token_mask {list(token_mask.shape)} {token_mask.dtype}: must be {list(tokens)} bool")
    if document_ids is not None and (document_ids.shape != tokens or document_ids.is_floating_point()):
        raise ValueError(f"document_ids {list(document_ids.shape)} {document_ids.dtype}: must be {list(tokens)} int")
