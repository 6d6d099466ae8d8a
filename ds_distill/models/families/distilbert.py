"""DistilBERT (Sanh et al. 2019), and how a BERT becomes one.

It has no token types, its LayerNorm's eps is fixed in the code, and its decoder is tied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_distill.models.families.family import ConfigNames, Family, StudentClass

if TYPE_CHECKING:
    from torch import Tensor

DISTILBERT = Family(
    name="distilbert",
    title="DistilBERT",
    encoder="distilbert",
    layers="distilbert.transformer.layer",
    decoder="vocab_projector",
    mlm_transform=lambda model, hidden: model.vocab_layer_norm(model.activation(model.vocab_transform(hidden))),
    names=ConfigNames(
        depth="n_layers",
        heads="n_heads",
        width="dim",
        feed_forward="hidden_dim",
        activation="activation",
        dropouts=("dropout", "attention_dropout"),
        head_dropouts=("seq_classif_dropout", "qa_dropout"),
    ),
    ffn=("ffn.lin1", "ffn.activation"),
    projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    eps=1e-12,
    sinusoidal="sinusoidal_pos_embds",
    has_pooler=False,
)

RENAMES = {
    "distilbert.embeddings.": "bert.embeddings.",
    "distilbert.transformer.layer.": "bert.encoder.layer.",
    ".attention.q_lin.": ".attention.self.query.",
    ".attention.k_lin.": ".attention.self.key.",
    ".attention.v_lin.": ".attention.self.value.",
    ".attention.out_lin.": ".attention.output.dense.",
    ".sa_layer_norm.": ".attention.output.LayerNorm.",
    ".ffn.lin1.": ".intermediate.dense.",
    ".ffn.lin2.": ".output.dense.",
    ".output_layer_norm.": ".output.LayerNorm.",
    "vocab_transform.": "cls.predictions.transform.dense.",
    "vocab_layer_norm.": "cls.predictions.transform.LayerNorm.",
    "vocab_projector.": "cls.predictions.decoder.",
}


def _make_config(bert: Any) -> Any:
    from transformers import DistilBertConfig

    return DistilBertConfig(
        vocab_size=bert.vocab_size,
        max_position_embeddings=bert.max_position_embeddings,
        pad_token_id=bert.pad_token_id,
        initializer_range=bert.initializer_range,
    )


def _fold_token_types(config: Any, bert: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the embedding of token type 0 to each position: pretraining sees no other, so it is a constant vector."""
    positions, types = (f"bert.embeddings.{name}_embeddings.weight" for name in ("position", "token_type"))
    return bert | {positions: bert[positions].float() + bert[types][0].float()}


STUDENT_OF_BERT = StudentClass(DISTILBERT.name, _make_config, RENAMES, _fold_token_types)
