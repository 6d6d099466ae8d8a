"""The attention mask of a batch, in the form that an encoder's family takes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ds_distill.models.families import get_family


def full_mask(attention_mask: Tensor) -> Tensor:
    """Return a mask of 4 dimensions, [B, 1, L, L] bool, for one of 2; one of 4 as it is."""
    if attention_mask.dim() == 4:
        return attention_mask
    length = attention_mask.shape[1]
    return attention_mask.bool()[:, None, None, :].expand(-1, 1, length, length)


def make_attention_mask(model: PreTrainedModel, attention_mask: Tensor | None) -> Tensor | None:
    """Return the `attention_mask` that a model's encoder or layers take, see `Family.mask`.

    transformers asks a mask of 2 dimensions whether it is true everywhere, for which the host waits for a GPU. One of 4
    dimensions it takes as it is, so that is given to every family that can read it.

    Args:
        model: A masked-LM model or a bare encoder.
        attention_mask: [B, L] bool, true on real tokens, or [B, 1, L, L] bool, true where a query may see a key; None
            where all tokens are real.
    """
    if attention_mask is None:
        return None
    if get_family(model).mask == "bool":
        return full_mask(attention_mask)
    # A query that sees nothing, as in padding, would be NaN with -inf; and the lowest number of fp16 becomes -inf where
    # a score is added to it, which half of it does not.
    dtype = model.dtype
    return torch.zeros((), dtype=dtype, device=attention_mask.device).masked_fill(
        ~full_mask(attention_mask), torch.finfo(dtype).min / 2
    )
