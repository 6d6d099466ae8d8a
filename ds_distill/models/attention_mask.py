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


def window_mask(attention_mask: Tensor | None, window: int, like: Tensor) -> Tensor | None:
    """Return `attention_mask` without the keys that are farther from a query than `window` tokens, on either side.

    Args:
        attention_mask: [B, 1, L, L] bool, or None.
        window: The distance.
        like: [B, L, ...], for the length and the device.

    Returns:
        [B, 1, L, L] or [1, 1, L, L] bool; `attention_mask` itself where the window reaches from end to end.
    """
    length = like.shape[1]
    if length <= window + 1:
        return attention_mask
    positions = torch.arange(length, device=like.device)
    near = ((positions[:, None] - positions).abs() <= window)[None, None]
    return near if attention_mask is None else attention_mask & near


def make_attention_mask(
    model: PreTrainedModel, attention_mask: Tensor | None, like: Tensor
) -> Tensor | dict[str, Tensor | None] | None:
    """Return the `attention_mask` that a model's encoder or layers take, see `Family.mask`.

    transformers asks a mask of 2 dimensions whether it is true everywhere, for which the host waits for a GPU. One of 4
    dimensions it takes as it is, so that is given to every family that can read it.

    Args:
        model: A masked-LM model or a bare encoder.
        attention_mask: [B, L] bool, true on real tokens, or [B, 1, L, L] bool, true where a query may see a key; None
            where all tokens are real.
        like: [B, L, ...], for the length and the device.
    """
    kind = get_family(model).mask
    if kind == "by_type":
        full = None if attention_mask is None else full_mask(attention_mask)
        return {"full_attention": full, "sliding_attention": window_mask(full, model.config.sliding_window, like)}
    if attention_mask is None:
        return None
    if kind == "bool":
        return full_mask(attention_mask)
    # A query that sees nothing, as in padding, would be NaN with -inf.
    dtype = model.dtype
    return torch.zeros((), dtype=dtype, device=attention_mask.device).masked_fill(
        ~full_mask(attention_mask), torch.finfo(dtype).min
    )
