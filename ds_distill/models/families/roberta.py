"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020).

Their positions start after the padding id, and their head has names of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_distill.models.families.family import AsBert, Family

if TYPE_CHECKING:
    from torch import Tensor

ROBERTAS_HEAD = {
    "lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
    "lm_head.decoder.": "cls.predictions.decoder.",
}


def roberta_like(name: str, title: str) -> Family:
    """Return the family of a class that transformers derives from RoBERTa's."""
    return Family(
        name=name,
        title=title,
        encoder="roberta",
        layers="roberta.encoder.layer",
        decoder="lm_head.decoder",
        mlm_transform=robertas_transform,
        as_bert=AsBert({"roberta.": "bert.", **ROBERTAS_HEAD}),
        first_position=lambda config: config.pad_token_id + 1,
    )


def robertas_transform(model: Any, hidden: Tensor) -> Tensor:
    """Return what RoBERTa's head gives its decoder, [..., H], for hidden states [..., H]."""
    from transformers.activations import gelu  # the head applies it, whatever the config's activation

    return model.lm_head.layer_norm(gelu(model.lm_head.dense(hidden)))


ROBERTA, XLM_ROBERTA = roberta_like("roberta", "RoBERTa"), roberta_like("xlm-roberta", "XLM-R")
