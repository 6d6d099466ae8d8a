"""MPNet (Song et al. 2020), whose sentence embedders are used widely.

All layers add one bias to their attention scores, by relative position and head, and only attention that is written
out can add it. Positions begin at 2, whatever the config's padding id, and there are no token types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_distill.models.families.family import AsBert, ConfigNames, Family
from ds_distill.models.families.roberta import ROBERTAS_HEAD, robertas_transform

if TYPE_CHECKING:
    from torch import Tensor

RENAMES = {
    "mpnet.": "bert.",
    ".attention.attn.q.": ".attention.self.query.",
    ".attention.attn.k.": ".attention.self.key.",
    ".attention.attn.v.": ".attention.self.value.",
    ".attention.attn.o.": ".attention.output.dense.",
    ".attention.LayerNorm.": ".attention.output.LayerNorm.",
    **ROBERTAS_HEAD,
}


def _position_bias(encoder: Any, layer: Any, hidden: Tensor) -> dict[str, Tensor]:
    return {"position_bias": encoder.encoder.compute_position_bias(hidden)}


MPNET = Family(
    name="mpnet",
    title="MPNet",
    encoder="mpnet",
    layers="mpnet.encoder.layer",
    decoder="lm_head.decoder",
    mlm_transform=robertas_transform,
    as_bert=AsBert(RENAMES, lost="the bias of its attention by relative position"),
    names=ConfigNames(sizes=("relative_attention_num_buckets",)),
    outputs=None,  # all layers' heads share one bias
    projections=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
    first_position=lambda config: 2,
    attention="eager",
    mask="float",
    layer_inputs=_position_bias,
    recomputes=False,
)
