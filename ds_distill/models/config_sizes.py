"""Checks of the sizes in a config.json, which may come from anywhere, before transformers computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_distill.models.families.family import Family


def check_written_sizes(written: Mapping[str, Any], family: Family) -> None:
    """Raise ValueError where a size in the content of a config.json is none that a model can have.

    A size that is not written has the default of its class.
    """
    from transformers import CONFIG_MAPPING

    names = family.names
    least = dict.fromkeys((*names.dims[:4], "vocab_size", "max_position_embeddings", *names.sizes), 1)
    least |= {names.embedding: 1} if names.embedding else {}
    least["type_vocab_size"] = 0
    aliases = CONFIG_MAPPING[family.name].attribute_map
    for key, value in written.items():
        smallest = least.get(aliases.get(key, key))
        if smallest is not None and (type(value) is not int or value < smallest):
            raise ValueError(f"{key} = {value!r:.40}: must be a whole number, {smallest} or more")


def check_sizes(config: Any, family: Family) -> None:
    """Raise ValueError where the sizes of a config describe no model together."""
    names, dims = family.names, family.dims(config)
    if not all(type(number) is int for number in (family.positions(config), *dims[:4])):
        raise ValueError("its sizes are not whole numbers")
    if dims.heads < 1 or dims.width % dims.heads:
        raise ValueError(f"{names.heads} = {dims.heads}: must divide {names.width} = {dims.width}")
    head = dims.width // dims.heads
    if family.rotary and head % 2:
        raise ValueError(
            f"{names.heads} = {dims.heads}: each head has {head} dimensions, and positions turn pairs of them"
        )
    if family.positions(config) < 1:
        raise ValueError(
            f"max_position_embeddings = {config.max_position_embeddings}: must be {1 + family.first_position(config)} "
            f"or more, since the first {family.first_position(config)} positions are not those of tokens"
        )
