"""ALBERT (Lan et al. 2020): groups of consecutive layers share their weights, over embeddings of their own width.

Students whose layers share weights are ALBERTs. transformers' class has layers within a group too
(`inner_group_num`), of which no published model has more than one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_distill.models.families.family import AsBert, ConfigNames, Factors, Family

if TYPE_CHECKING:
    from torch import Tensor

RENAMES = {
    "albert.encoder.embedding_hidden_mapping_in.": "bert.embeddings_project.",
    "albert.encoder.albert_layer_groups.": "bert.encoder.layer.",
    ".albert_layers.0.": ".",
    ".attention.query.": ".attention.self.query.",
    ".attention.key.": ".attention.self.key.",
    ".attention.value.": ".attention.self.value.",
    ".attention.dense.": ".attention.output.dense.",
    ".attention.LayerNorm.": ".attention.output.LayerNorm.",
    ".ffn.": ".intermediate.dense.",
    ".ffn_output.": ".output.dense.",
    ".full_layer_layer_norm.": ".output.LayerNorm.",
    "albert.": "bert.",
    "predictions.dense.": "cls.predictions.transform.dense.",
    "predictions.LayerNorm.": "cls.predictions.transform.LayerNorm.",
    "predictions.decoder.": "cls.predictions.decoder.",
    "predictions.bias": "cls.predictions.bias",
}


def _transform(model: Any, hidden: Tensor) -> Tensor:
    head = model.predictions
    return head.LayerNorm(head.activation(head.dense(hidden)))


def _check_groups(config: Any) -> None:
    """Raise ValueError where a config asks for layers within groups, or for other groups than its layers can be."""
    if config.inner_group_num != 1:
        raise ValueError(f"inner_group_num = {config.inner_group_num}: only one layer in each group is supported")
    if not 1 <= config.num_hidden_groups <= config.num_hidden_layers:
        raise ValueError(f"num_hidden_groups = {config.num_hidden_groups}: must be 1 to num_hidden_layers")


ALBERT = Family(
    name="albert",
    title="ALBERT",
    encoder="albert",
    layers="albert.encoder.albert_layer_groups",
    within_group="albert_layers.0",
    decoder="predictions.decoder",
    mlm_transform=_transform,
    names=ConfigNames(
        embedding="embedding_size", groups="num_hidden_groups", head_dropouts=("classifier_dropout_prob",)
    ),
    as_bert=AsBert(RENAMES),
    factors=Factors("albert.encoder.embedding_hidden_mapping_in", "predictions.dense", "predictions.LayerNorm"),
    ffn=("ffn", "activation"),
    outputs=None,  # layers share what would be cut
    projections=("attention.query", "attention.key", "attention.value"),
    layers_stand_alone=False,
    recomputes=False,
    standardize=_check_groups,
)
