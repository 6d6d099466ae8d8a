"""Compilation of an encoder's blocks: the code between the matrix products becomes a few kernels, including dropout."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from ds_distill.kernels.dropout import CounterDropout, counter_dropout
from ds_distill.models.families import get_family

_NAME = "written_out"


def compile_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Have each block of `model` compiled at its first call, for one shape [B, L] of input.

    Parameters and their names stay as they are. On a CPU attention is written out, since torch's
    flash kernel has no dropout and a slow backward there, and dropout is `counter_dropout`. Outside
    compiled code (torch.compiler.set_stance("force_eager")) the model computes as before.
    """
    family = get_family(model)
    blocks = family.get_layers(model)
    # to torch all blocks of teacher and student are one piece of code, and it falls back to eager
    # after eight variants
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    if device.type == "cpu":
        if family.attention == "sdpa":  # a family that is run with eager attention has it written out
            model.set_attn_implementation(_NAME)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, CounterDropout(child.p).train(child.training))
        inside = set(blocks.modules())
        for module in model.modules():
            if isinstance(module, CounterDropout) and module not in inside:
                module.compile(dynamic=False)
    for block in blocks:
        block.compile(dynamic=False)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_,
) -> tuple[Tensor, None]:
    """Return (attention [B, L, heads, d], None) of query, key, value [B, heads, L, d].

    mask: [B, 1, L, L] bool, true where a query may see a key, or None.
    """
    if not torch.compiler.is_compiling():
        out = scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling)
    else:
        scores = (query @ key.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if mask is not None:
            # padding sees nothing, and −∞ everywhere would give NaN
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        out = (counter_dropout(weights, dropout) if dropout else weights).to(value.dtype) @ value
    return out.transpose(1, 2), None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
