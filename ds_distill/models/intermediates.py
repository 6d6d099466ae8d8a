"""What lies inside an encoder: quantities of its layers, recorded in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from ds_distill.models.families import get_family

LAST = -1


class Site(NamedTuple):
    """A place in an encoder where a quantity is recorded.

    Attributes:
        quantity: "hidden", the hidden states [B, L, H] after a layer; "embeddings", what enters the first
            layer.
        layer: The layer, from 0, and 0 for embeddings; LAST for the encoder's output.
    """

    quantity: Literal["hidden", "embeddings"]
    layer: int


LAST_HIDDEN = Site("hidden", LAST)
EMBEDDINGS = Site("embeddings", 0)


def full_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Return a mask of 4 dimensions, [B, 1, L, L] bool, for one of 2.

    transformers asks a mask of 2 dimensions whether it is true everywhere, for which the host waits for a GPU. One of 4
    dimensions it takes as it is.
    """
    if attention_mask is None or attention_mask.dim() != 2:
        return attention_mask
    length = attention_mask.shape[1]
    return attention_mask.bool()[:, None, None, :].expand(-1, 1, length, length)


def run_encoder(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None = None,
    sites: Sequence[Site] = (),
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Run the encoder of a masked-LM model; return (its last hidden state [B, L, H], what the sites ask for).

    Sites within the encoder make transformers return every layer's hidden states. Autograd keeps
    these in any case.

    Args:
        model: The masked-LM model.
        input_ids: [B, L] int.
        attention_mask: [B, L] or [B, 1, L, L] bool, or None where all tokens are real.
        cu_seqlens: As in data.batch, for models.attention; or None.
        sites: The quantities to record.
    """
    inside = any(site.layer != LAST for site in sites)
    options = {} if cu_seqlens is None else {"cu_seq_lens_q": cu_seqlens}
    output = get_family(model).get_encoder(model)(
        input_ids=input_ids,
        attention_mask=full_mask(attention_mask),
        **options,
        **({"output_hidden_states": True} if inside else {}),
    )
    last = output.last_hidden_state
    # the first of transformers' hidden states is the embeddings' output
    return last, {
        site: last if site.layer == LAST else output.hidden_states[site.layer + (site.quantity == "hidden")]
        for site in sites
    }
