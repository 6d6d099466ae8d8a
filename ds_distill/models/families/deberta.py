"""DeBERTa-v2 and DeBERTa-v3 (He et al. 2021a, 2021b), which are one class in transformers.

Attention scores have terms of relative positions, which all layers take from one matrix, `encoder.rel_embeddings`. The
class computes them in code of its own, [B · heads, L, L] at a time, and reads a mask of tokens alone.

DeBERTa-v1 (`deberta`) is another class, with queries, keys and values in one weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ds_distill.models.families.family import AsBert, ConfigNames, Family
from ds_distill.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# The head that transformers calls legacy has the same parts. Only there is the projection on the vocabulary a module.
HEAD_RENAMES = {
    r"lm_predictions\.lm_head\.dense": "cls.predictions.transform.dense",
    r"lm_predictions\.lm_head\.LayerNorm": "cls.predictions.transform.LayerNorm",
    r"lm_predictions\.lm_head\.bias": "cls.predictions.bias",
}

RENAMES = {"deberta.": "bert.", "_proj.": "."}


def _use_legacy_head(config: Any) -> None:
    config.legacy = True


def _head_renames(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Return the names of the other head where the files have one that was trained.

    The published files of DeBERTa-v3 have a head of that name too. What was trained in them is replaced-token
    detection, mask_predictions.
    """
    trained = config.get("legacy") is False and not any("mask_predictions." in name for name in names)
    return HEAD_RENAMES if trained else {}


def _scale_queries(config: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide the queries by what their scores are divided by beside the √d of BERT's.

    With n terms of positions the scores are q·k / √(d (1 + n)), plus these terms. Source: He et al. 2021a, equation 4.
    """
    terms = len({"c2p", "p2c"} & set(config.pos_att_type or ()))
    scale = (1 + terms) ** -0.5
    return {name: x * scale if ".attention.self.query." in name else x for name, x in weights.items()}


def _position_rows(config: Any) -> int:
    """Return the rows of rel_embeddings times the terms that multiply them: content to position, position to content.

    Source: He et al. 2021a, section 3.1, equation 4.
    """
    if not config.relative_attention:
        return 0
    span = getattr(config, "position_buckets", -1)
    if span <= 0:
        span = config.max_relative_positions
    if span <= 0:
        span = config.max_position_embeddings
    return 2 * span * len({"c2p", "p2c"} & set(config.pos_att_type or ()))


def _narrow(student: Any, teacher: Any) -> None:
    """Adapt the sizes of a narrower student: its pooler's, and that of its embeddings, which may be another."""
    student.pooler_hidden_size = student.hidden_size
    embedding = getattr(teacher, "embedding_size", teacher.hidden_size)
    if embedding == teacher.hidden_size:
        vars(student).pop("embedding_size", None)
    elif student.hidden_size == embedding:
        raise UserError(
            f"student.hidden_size = {embedding}: is the size of the teacher's embeddings, which it projects on its "
            "width, and a student of that width would have no such projection; give another multiple of the head size"
        )
    if getattr(teacher, "conv_kernel_size", 0) > 0 and getattr(teacher, "conv_groups", 1) > 1:
        raise UserError(
            f"student.hidden_size = {student.hidden_size}: the teacher's convolution has {teacher.conv_groups} groups, "
            "which a narrower student cannot take over; leave student.hidden_size out"
        )


DEBERTA_V2 = Family(
    name="deberta-v2",
    title="DeBERTa-v2 and v3",
    encoder="deberta",
    layers="deberta.encoder.layer",
    decoder="cls.predictions.decoder",
    mlm_transform=lambda model, hidden: model.cls.predictions.transform(hidden),
    as_bert=AsBert(RENAMES, fold=_scale_queries, lost="the terms of relative positions in its attention"),
    names=ConfigNames(head_dropouts=("pooler_dropout", "cls_dropout")),
    outputs=None,  # all layers' heads share the projections of relative positions
    projections=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
    attention="eager",
    mask="tokens",
    has_pooler=False,
    has_positions=lambda config: config.position_biased_input,
    scores_positions=True,
    layers_stand_alone=False,
    position_rows=_position_rows,
    standardize=_use_legacy_head,
    narrow=_narrow,
    head_renames=_head_renames,
    head_note="the published DeBERTa-v3 checkpoints have none that was trained for masked LM",
)
