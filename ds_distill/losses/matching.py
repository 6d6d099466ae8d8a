"""Losses between hidden states of student and teacher, by their names in a recipe. They need only torch.

A new loss is a function here and a row in LOSSES.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def cosine_distance_sum(student_hidden: Tensor, teacher_hidden: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Return the sum over tokens of 1 − cos(h_s, h_t), in fp32 (float64 stays float64).

    The result is a scalar, summed, not averaged: the caller divides by the global count of real
    tokens.

    Args:
        student_hidden: [..., H], any float dtype.
        teacher_hidden: [..., H], of the same shape, any float dtype.
        token_mask: [...] bool, False for padding.

    Source: Sanh et al. 2019, section 2 (the cosine embedding loss on the last hidden state).
    """
    wide = torch.promote_types(student_hidden.dtype, torch.float32)
    # norms of 16-bit vectors overflow (fp16) or lose small differences of the loss (bf16)
    student_hidden, teacher_hidden = student_hidden.to(wide), teacher_hidden.to(wide)
    if token_mask is not None:
        # filled before the product, since a vector of padding that is not finite would leave a gradient of nan
        padding = ~token_mask.unsqueeze(-1)
        student_hidden, teacher_hidden = (x.masked_fill(padding, 1.0) for x in (student_hidden, teacher_hidden))
    distance = 1.0 - torch.nn.functional.cosine_similarity(student_hidden, teacher_hidden, dim=-1)
    if token_mask is not None:
        distance = distance.masked_fill(~token_mask, 0.0)  # of equal vectors it is 0 but for rounding
    return distance.sum()


def squared_error_sum(student_hidden: Tensor, teacher_hidden: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Return the sum over tokens of the mean squared difference of h_s and h_t, in fp32 (float64 stays float64).

    Args:
        student_hidden: [..., H], any float dtype.
        teacher_hidden: [..., H], of the same shape, any float dtype.
        token_mask: [...] bool, False for padding.

    Source: Sun et al. 2019 (PKD), section 3.2, without its normalization; Jiao et al. 2020 (TinyBERT),
    section 3.1, equation 8.
    """
    wide = torch.promote_types(student_hidden.dtype, torch.float32)
    difference = student_hidden.to(wide) - teacher_hidden.to(wide)
    if token_mask is not None:
        difference = difference.masked_fill(~token_mask.unsqueeze(-1), 0.0)
    return difference.square().mean(-1).sum()


# By name in a recipe: takes the student's and the teacher's [..., H] and the mask [...] of real
# tokens or None, and returns a sum over tokens.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "cosine": cosine_distance_sum,
    "mse": squared_error_sum,
}
