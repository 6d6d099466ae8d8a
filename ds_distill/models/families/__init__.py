"""The families of encoders, one file each: adding one more is a file here, a line below, and its tests."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ds_distill.models.families.bert import BERT
from ds_distill.models.families.distilbert import DISTILBERT
from ds_distill.models.families.family import Family
from ds_distill.models.families.roberta import ROBERTA, XLM_ROBERTA
from ds_distill.utils.errors import UserError

if TYPE_CHECKING:  # a mistake in a folder need not wait for torch
    from transformers import PreTrainedModel

FAMILIES: dict[str, Family] = {family.name: family for family in (BERT, DISTILBERT, ROBERTA, XLM_ROBERTA)}


def family_of(model: PreTrainedModel) -> Family:
    """The family of a masked-LM model.  Raises UserError for a family that is not in the table."""
    return family_of_type(model.config.model_type)


def head_size(model: PreTrainedModel) -> int:
    """Width of one attention head."""
    _, heads, width, *_ = family_of(model).measures(model.config)
    return width // heads


INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # what tokenizers make; each model takes its own


def inputs_of(model: PreTrainedModel, given: Iterable[str]) -> list[str]:
    """Names of the inputs, each int64 [B, L], that the model takes of those that are given; token types only where it has more than one, as RoBERTas
    that came with BERT's kind of tokenizer have not."""
    taken, given = inspect.signature(model.forward).parameters, set(given)
    if getattr(model.config, "type_vocab_size", 2) < 2:
        given.discard("token_type_ids")
    return [name for name in INPUTS if name in taken and name in given]


def family_of_type(model_type: str | None) -> Family:
    """The family of a `config.model_type`.  Raises UserError for one that is not in the table."""
    if model_type not in FAMILIES:
        raise UserError(f"model_type = {model_type!r}: not a supported encoder; use one of: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def check_positions(config, length: int, what: str) -> None:
    """UserError where `what`, a model of this config, cannot read sequences of `length` tokens."""
    positions = family_of_type(config.model_type).positions(config)
    if length > positions:
        raise UserError(f"data.sequence_length = {length}: {what} has {positions} positions")
