"""Weights for which a model has no place, which from_pretrained leaves out without an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.models.families.family import Family
from ds_distill.models.folder import join_names
from ds_distill.models.layer_shapes import KEY, is_pruned
from ds_distill.models.weight_names import WITHIN
from ds_distill.utils.errors import UserError

# What published files have within an encoder beside what it computes with: numbers that follow from the config, the
# pooler of a head that is not read, and `_weight`, by which DeBERTa-v3's embeddings differed from its generator's.
ADAPTER = re.compile(r"\.(lora_\w+|ia3_\w+|base_layer|adapters?)\.")
BENIGN = {"position_ids", "token_type_ids", "rotary_emb", "inv_freq", "_weight", "pooler"}


def check_adapters(names: Iterable[str], given: str) -> None:
    """Raise UserError where a file has adapters beside the weights that they change."""
    if adapters := sorted(name for name in names if ADAPTER.search(f".{name}.")):
        raise UserError(
            f"{given}: its weights have adapters that are not merged ({join_names(adapters, 2)}); merge them, with "
            "merge_and_unload() of peft, and save the model with save_pretrained"
        )


def check_leftovers(leftovers: Iterable[str], names: Sequence[str], model: PreTrainedModel, given: str) -> None:
    """Raise UserError where weights of the encoder were left out, since without them it computes something else.

    Weights of other heads are no part of an encoder, and may be left out.

    Args:
        leftovers: The names of the weights that were left out, with or without the encoder's prefix.
        names: The names of all weights in the files.
        model: The model that was loaded.
        given: What the error begins with.
    """
    family = get_family(model)
    is_prefixed = any(f".{family.encoder}." in f".{name}" for name in names)
    lost = []
    for name in leftovers:
        path = _within_encoder(re.sub(WITHIN, "", name), family, model, is_prefixed)
        if path and not BENIGN & set(path.split(".")):
            lost.append(path)
    if lost:
        lost.sort(key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)])
        raise UserError(
            f"{given}: {_describe_config(lost[0], family, model)} has no place for the encoder's weights "
            f"{join_names(lost, 2)}; restore the config.json that belongs to the weights"
        )


def _within_encoder(name: str, family: Family, model: PreTrainedModel, is_prefixed: bool) -> str:
    """Return a weight's name within the encoder; empty where it is not the encoder's."""
    if is_prefixed:
        return name.removeprefix(f"{family.encoder}.") if name.startswith(f"{family.encoder}.") else ""
    parts = {part for part, _ in family.get_encoder(model).named_children()}
    if family.factors:
        parts.add(family.factors.projection.split(".")[1])  # some models lack it
    return name if name.partition(".")[0] in parts else ""


def _describe_config(path: str, family: Family, model: PreTrainedModel) -> str:
    """Return the key of config.json, and its value, that leaves no place for a weight of the encoder."""
    config: Any = model.config
    layer = re.match(rf"{re.escape(family.layers.removeprefix(f'{family.encoder}.'))}\.(\d+)\.", path)
    if layer:
        number, key = int(layer[1]), family.names.groups or family.names.depth
        if number >= len(family.get_layers(model)):
            return f"{key} = {getattr(config, key)} in config.json"
        if is_pruned(config):
            return f"{KEY}[{number}] = {getattr(config, KEY)[number]} in config.json"
    return "config.json"
