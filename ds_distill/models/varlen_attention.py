"""Attention within the documents of a packed block by torch's variable-length flash kernel.

It replaces a mask of tokens × tokens.
"""

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

varlen_attn: Any = None  # the kernel, once _load_kernel has found it
_NAME = "varlen_attention"


def _load_kernel() -> None:
    """Import the kernel, unless it is there; with it comes torch._dynamo, which takes seconds, so only GPUs need it."""
    global varlen_attn
    if varlen_attn is None:
        with contextlib.suppress(ImportError):  # other releases of torch do not have it under this name
            from torch.nn.attention.varlen import varlen_attn


def varlen_unavailable_reason(
    device: torch.device,
    dtype: torch.dtype,
    head_size: int = 64,
    attention: str = "sdpa",
    windows: Sequence[int | None] = (),
) -> str | None:
    """Return why the kernel cannot serve a model on this device, or None.

    Args:
        device: The device.
        dtype: The model's dtype.
        head_size: The width of its attention heads.
        attention: `Family.attention` of its family.
        windows: For each layer how far a token sees to either side, or None.
    """
    if attention == "eager":
        return "the model has attention code of its own"
    if device.type != "cuda":
        return "no GPU"
    _load_kernel()
    if varlen_attn is None:
        return "this torch has no torch.nn.attention.varlen"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than Ampere"
    if head_size % 8 or head_size > 256:
        return f"attention heads of {head_size}: the kernel wants a multiple of 8, at most 256"
    if any(window is not None for window in windows) and not _takes_windows():
        return "this torch's kernel has no window, which the model's local attention needs"
    return None if dtype in (torch.float16, torch.bfloat16) else "the model is in fp32"


def _takes_windows() -> bool:
    return "window_size" in inspect.signature(varlen_attn).parameters


def use_varlen_attention(model: PreTrainedModel) -> None:
    """Have `model` use the kernel where its encoder gets cu_seqlens and attention has no dropout.

    cu_seqlens is given as cu_seq_lens_q, beside the mask. The kernel has no dropout, so a student
    with attention dropout keeps the mask while it trains.
    """
    _load_kernel()
    model.set_attn_implementation(_NAME)


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, window: int | None = None) -> Tensor:
    """Return attention within documents, [B, L, heads, d].

    Args:
        query: [B, heads, L, d] in 16 bit.
        key: [B, heads, L, d] in 16 bit.
        value: [B, heads, L, d] in 16 bit.
        starts: [n + 1] int32, where each document begins in the flattened [B · L] batch, then
            filled up with B · L.
        window: How far a token sees to either side; None for its whole document.
    """
    batch, heads, length, size = query.shape
    flat = (x.transpose(1, 2).reshape(batch * length, heads, size) for x in (query, key, value))
    options = {} if window is None else {"window_size": (window, window)}
    return varlen_attn(*flat, starts, starts, length, length, **options).view(batch, length, heads, size)


def _attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    **_,
) -> tuple[Tensor, None]:
    # older releases of the kernel know only this scale
    usual = scaling is None or abs(scaling * query.shape[-1] ** 0.5 - 1) < 1e-6
    if cu_seq_lens_q is not None and not dropout and usual:
        # transformers counts the token itself
        window = None if sliding_window is None else sliding_window - 1
        return varlen_attention(query, key, value, cu_seq_lens_q, window=window), None
    return scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling).transpose(1, 2), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
