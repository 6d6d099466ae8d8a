"""ALBERT (Lan et al. 2020): groups of consecutive layers share their weights, over embeddings of their own width.

The student of a BERT becomes an ALBERT where its layers are to share weights. transformers' class has layers within a
group too (`inner_group_num`), of which no published model has more than one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_distill.models.families.electra import KEPT
from ds_distill.models.families.family import ConfigNames, Factors, Family, StudentClass

if TYPE_CHECKING:
    from torch import Tensor

NAMES_IN_BERT = {
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


def make_albert_config(teacher: Any) -> Any:
    """Return the config of an ALBERT with what carries over from a teacher of BERT's kind, a group for each layer."""
    from transformers import AlbertConfig

    return AlbertConfig(
        embedding_size=teacher.hidden_size,
        num_hidden_groups=teacher.num_hidden_layers,
        bos_token_id=None,
        eos_token_id=None,
        **{key: getattr(teacher, key) for key in KEPT},
    )


def _transform(model: Any, hidden: Tensor) -> Tensor:
    head = model.predictions
    return head.LayerNorm(head.activation(head.dense(hidden)))


def _check_groups(config: Any) -> None:
    """Raise ValueError where a config asks for layers within groups, or for other groups than its layers can be."""
    if config.inner_group_num != 1:
        raise ValueError(f"inner_group_num = {config.inner_group_num}: only one layer in each group is supported")
    if not 1 <= config.num_hidden_groups <= config.num_hidden_layers:
        raise ValueError(f"num_hidden_groups = {config.num_hidden_groups}: must be 1 to num_hidden_layers")


ALBERT_OF_BERT = StudentClass("albert", make_albert_config, NAMES_IN_BERT)

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
    factors=Factors("albert.encoder.embedding_hidden_mapping_in", "predictions.dense", "predictions.LayerNorm"),
    ffn=("ffn", "activation"),
    projections=("attention.query", "attention.key", "attention.value"),
    layers_stand_alone=False,
    recomputes=False,
    standardize=_check_groups,
)
