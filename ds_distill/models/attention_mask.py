"""The attention mask of a batch, in the form that an encoder's family takes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError


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

    Raises:
        ValueError: The mask is one of 4 dimensions, and the family takes one of tokens; see `check_keeps_apart`.
    """
    kind = get_family(model).mask
    if kind == "by_type":
        full = None if attention_mask is None else full_mask(attention_mask)
        return {"full_attention": full, "sliding_attention": window_mask(full, model.config.sliding_window, like)}
    if attention_mask is None:
        # Without a mask transformers looks whether there is padding, for which the host waits too.
        return torch.ones(like.shape[:2], dtype=torch.int, device=like.device) if kind == "tokens" else None
    if kind == "tokens":
        if attention_mask.dim() != 2:
            raise ValueError(
                f"{with_article(get_family(model).name)} takes no mask of {attention_mask.dim()} dimensions"
            )
        return attention_mask.int()  # DeBERTa subtracts it from 1
    if kind == "bool":
        return full_mask(attention_mask)
    # A query that sees nothing, as in padding, would be NaN with -inf; and the lowest number of fp16 becomes -inf where
    # a score is added to it, which half of it does not.
    dtype = model.dtype
    return torch.zeros((), dtype=dtype, device=attention_mask.device).masked_fill(
        ~full_mask(attention_mask), torch.finfo(dtype).min / 2
    )


def check_keeps_apart(config: PretrainedConfig, mode: str, attend_across_documents: bool, what: str) -> None:
    """Raise UserError where packed documents are not to see each other, and `what`, of this config, cannot do that.

    Args:
        config: The model's config.
        mode: The recipe's data.mode.
        attend_across_documents: The recipe's data.attend_across_documents.
        what: The model, for the error.
    """
    family = get_family_by_type(config.model_type)
    if mode == "packed" and not attend_across_documents and family.mask == "tokens":
        raise UserError(
            f"data.attend_across_documents = false: {what} is {with_article(family.name)}, which cannot keep the "
            "documents of a packed sequence apart; set it to true, or set data.mode = lines"
        )
