"""The families of encoders, one file each. A new one needs a file here, a line below, and its tests."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ds_distill.models.families.albert import ALBERT
from ds_distill.models.families.bert import BERT
from ds_distill.models.families.camembert import CAMEMBERT
from ds_distill.models.families.deberta import DEBERTA_V2
from ds_distill.models.families.distilbert import DISTILBERT
from ds_distill.models.families.electra import ELECTRA
from ds_distill.models.families.family import Family
from ds_distill.models.families.modernbert import MODERNBERT
from ds_distill.models.families.mpnet import MPNET
from ds_distill.models.families.roberta import ROBERTA, XLM_ROBERTA
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError, nearest_name

if TYPE_CHECKING:  # a mistake in a folder need not wait for torch
    from transformers import PreTrainedModel

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        ALBERT,
        BERT,
        CAMEMBERT,
        DEBERTA_V2,
        DISTILBERT,
        ELECTRA,
        MODERNBERT,
        MPNET,
        ROBERTA,
        XLM_ROBERTA,
    )
}


def get_family(model: PreTrainedModel) -> Family:
    """Return the family of a masked-LM model; raise UserError for a family that is not in the table."""
    return get_family_by_type(model.config.model_type)


def head_size(model: PreTrainedModel) -> int:
    """Return the width of one attention head."""
    dims = get_family(model).dims(model.config)
    return dims.width // dims.heads


INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # tokenizers make these; each model takes a subset


def get_input_names(model: PreTrainedModel, given: Iterable[str]) -> list[str]:
    """Return the names of the inputs, each int64 [B, L], that the model takes of those that are given.

    Token types are taken only where the model has more than one. RoBERTas that came with a
    BERT-style tokenizer have only one.
    """
    taken, given = inspect.signature(model.forward).parameters, set(given)
    if getattr(model.config, "type_vocab_size", 2) < 2:
        given.discard("token_type_ids")
    return [name for name in INPUTS if name in taken and name in given]


def get_family_by_type(model_type: str | None) -> Family:
    """Return the family of a `config.model_type`; raise UserError for one that is not in the table."""
    if model_type not in FAMILIES:
        raise UserError(f"model_type = {model_type!r}: not a supported encoder{supported(model_type)}")
    return FAMILIES[model_type]


def supported(model_type: object) -> str:
    """Return the end of an error about an encoder that is not in the table: those that are, and the nearest by name."""
    nearest = nearest_name(model_type, FAMILIES) if isinstance(model_type, str) else None
    return f"; supported: {', '.join(FAMILIES)}" + (f"; nearest name: {nearest}" if nearest else "")


def check_positions(config, length: int, what: str) -> None:
    """Raise UserError where `what`, a model of this config, cannot read sequences of `length` tokens."""
    positions = get_family_by_type(config.model_type).positions(config)
    if length > positions:
        raise UserError(
            f"data.sequence_length = {length}: {what} has {positions} positions; give --data.sequence_length "
            f"{positions} or less"
        )


def could_recompute(config, training) -> bool:
    """Return whether recomputing layers would save memory that a run of these settings does not save already.

    Args:
        config: The config of the model that trains.
        training: The recipe's settings of training.
    """
    return not training.gradient_checkpointing and get_family_by_type(config.model_type).recomputes


def check_recomputes(config) -> None:
    """Raise UserError where transformers cannot recompute the layers of a model of this config in the backward pass."""
    family = get_family_by_type(config.model_type)
    if not family.recomputes:
        raise UserError(
            f"training.gradient_checkpointing = true: transformers cannot recompute the layers of "
            f"{with_article(family.name)}; set it to false"
        )
