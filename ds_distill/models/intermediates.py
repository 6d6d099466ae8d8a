"""What lies inside an encoder: quantities of its layers, recorded in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from ds_distill.models.attention_mask import make_attention_mask
from ds_distill.models.families import get_family
from ds_distill.models.recorder import Recorder

LAST = -1


class Site(NamedTuple):
    """A place in an encoder where a quantity is recorded.

    Attributes:
        quantity: "hidden", the hidden states [B, L, H] after a layer; "embeddings", what enters the first
            layer; "query", "key" or "value", a layer's vectors [B, L, H], the heads side by side.
        layer: The layer, from 0, and 0 for embeddings; LAST for the encoder's output.
    """

    quantity: Literal["hidden", "embeddings", "query", "key", "value"]
    layer: int


LAST_HIDDEN = Site("hidden", LAST)
HIDDEN = ("hidden", "embeddings")
EMBEDDINGS = Site("embeddings", 0)


def run_encoder(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    cu_seqlens: Tensor | None = None,
    sites: Sequence[Site] = (),
) -> tuple[Tensor, dict[Site, Tensor]]:
    """Run the encoder of a model; return (its last hidden state [B, L, H], what the sites ask for).

    What no site asks for is not kept.

    Args:
        model: A masked-LM model or a bare encoder.
        input_ids: [B, L] int.
        attention_mask: [B, L] or [B, 1, L, L] bool, or None where all tokens are real.
        cu_seqlens: As in data.batch, for models.attention; or None.
        sites: The quantities to record.
    """
    # the first of transformers' hidden states is what enters the first layer
    hidden = {site: site.layer + (site.quantity == "hidden") for site in sites if site.quantity in HIDDEN}
    within = sorted({index for site, index in hidden.items() if site.layer != LAST})
    options = {} if cu_seqlens is None else {"cu_seq_lens_q": cu_seqlens}
    with Recorder(model, [site for site in sites if site not in hidden]) as recorder:
        output = get_family(model).get_encoder(model)(
            input_ids=input_ids,
            attention_mask=make_attention_mask(model, attention_mask, input_ids),
            **options,
            **({"output_hidden_states": within} if within else {}),
        )
    states = {
        site: output.last_hidden_state if site.layer == LAST else output.hidden_states[index]
        for site, index in hidden.items()
    }
    return output.last_hidden_state, states | recorder.states
