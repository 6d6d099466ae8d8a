"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020).

Their positions start after the padding id, and their head has names of its own. A student becomes an ELECTRA where it
has embeddings of their own width, an ALBERT where it shares layers: their positions start at 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_distill.models.families import albert, electra
from ds_distill.models.families.family import Family, StudentClass

if TYPE_CHECKING:
    from torch import Tensor

NAMES_IN_ROBERTA = {
    "bert.": "roberta.",
    "cls.predictions.transform.dense.": "lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
    "cls.predictions.decoder.": "lm_head.decoder.",
    "cls.predictions.bias": "lm_head.bias",
}
POSITIONS = "roberta.embeddings.position_embeddings.weight"


def _first_position(config: Any) -> int:
    return config.pad_token_id + 1


def _from_first_position(config: Any, roberta: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the positions before the first one, which no token has."""
    return roberta | {POSITIONS: roberta[POSITIONS][_first_position(config) :]}


def _make_electra_config(roberta: Any) -> Any:
    return _shorten(electra.make_electra_config(roberta), roberta)


def _make_albert_config(roberta: Any) -> Any:
    return _shorten(albert.make_albert_config(roberta), roberta)


def _shorten(config: Any, roberta: Any) -> Any:
    config.max_position_embeddings -= _first_position(roberta)
    return config


STUDENTS = (
    StudentClass("electra", _make_electra_config, electra.NAMES_IN_BERT | NAMES_IN_ROBERTA, _from_first_position),
    StudentClass("albert", _make_albert_config, albert.NAMES_IN_BERT | NAMES_IN_ROBERTA, _from_first_position),
)


def roberta_like(name: str, title: str) -> Family:
    """Return the family of a class that transformers derives from RoBERTa's."""
    return Family(
        name=name,
        title=title,
        encoder="roberta",
        layers="roberta.encoder.layer",
        decoder="lm_head.decoder",
        mlm_transform=robertas_transform,
        other_students=STUDENTS,
        first_position=_first_position,
    )


def robertas_transform(model: Any, hidden: Tensor) -> Tensor:
    """Return what RoBERTa's head gives its decoder, [..., H], for hidden states [..., H]."""
    from transformers.activations import gelu  # the head applies it, whatever the config's activation

    return model.lm_head.layer_norm(gelu(model.lm_head.dense(hidden)))


ROBERTA, XLM_ROBERTA = roberta_like("roberta", "RoBERTa"), roberta_like("xlm-roberta", "XLM-R")
