"""ModernBERT (Warner et al. 2024), and what is of its class: Ettin, mmBERT, and encoders of Granite and GTE.

Its layers are of two kinds: those with global attention, and those in which a token sees only its neighbors. It has
rotary positions, a norm after the last layer but none before the attention of the first, and gated feed-forward layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_distill.models.families.family import AsBert, ConfigNames, Family

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = {
    "model.embeddings.tok_embeddings.": "bert.embeddings.word_embeddings.",
    "model.embeddings.norm.": "bert.embeddings.LayerNorm.",
}


def _rotation(encoder: Any, layer: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines [1, L, d] that turn a layer's queries and keys, for states [B, L, ...]."""
    import torch

    positions = torch.arange(states.shape[1], device=states.device)[None]
    return encoder.rotary_emb(states, positions, layer.attention_type)


def _split_projections(encoder: Any, layer: Any, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries and keys as attention uses them, turned by their positions, and the values.

    Attention sees q_i·R(j − i)·k_j, so only turned vectors give its scores, and relations of turned queries are
    q_i·R(j − i)·q_j: they depend on the distance of two tokens as attention does, not on where they are. That holds for
    pairs of dimensions that turn together. Here these lie side by side, so that relation heads of any even width, which
    divide the vectors anew, have whole pairs. A dot product over a whole attention head does not change.

    Args:
        encoder: The encoder.
        layer: One of its layers.
        fused: [B, L, 3H], the output of the layer's one projection.
    """
    from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

    query, key, value = fused.unflatten(-1, (3, -1, layer.attn.head_dim)).unbind(2)
    query, key = apply_rotary_pos_emb(query, key, *_rotation(encoder, layer, fused), unsqueeze_dim=2)
    # dimension m turns with m + d/2
    query, key = (x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(2) for x in (query, key))
    return query, key, value.flatten(2)


MODERNBERT = Family(
    name="modernbert",
    title="ModernBERT (also Ettin, mmBERT, and Granite and GTE encoders of its class)",
    encoder="model",
    layers="model.layers",
    decoder="decoder",
    mlm_transform=lambda model, hidden: model.head(hidden),
    names=ConfigNames(
        activation="hidden_activation",
        dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout"),
        eps="norm_eps",
        per_layer=("layer_types",),
        sizes=("local_attention", "global_attn_every_n_layers"),
    ),
    as_bert=AsBert(EMBEDDINGS, layers=False),
    ffn=None,
    outputs=None,
    projections=("attn.Wqkv",) * 3,
    split_projections=_split_projections,
    rotary=True,
    fused={"attn.Wqkv": 3, "mlp.Wi": 2},
    layer_inputs=lambda encoder, layer, hidden: {"position_embeddings": _rotation(encoder, layer, hidden)},
    final_norm="final_norm",
    absent_in_first="attn_norm",
    mask="by_type",
    has_positions=lambda config: False,
    has_pooler=False,
)
