"""An option's type and default in words, for `--help` and for the pages of docs/."""

from __future__ import annotations

import argparse
import re
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ds_distill.recipe import Match, Stage
from ds_distill.study.variants import Variant

TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
NONE = "–"
COUNTED = ("whole", "number", "list", "mapping", "path", "name")  # words that have an article
# The options of every command whose help is not worded here by jsonargparse
COMMON = {
    "help": "print the options and end",
    "config": None,
    "print_config": "print the settings that result from file and options, and end",
    "debug": None,
    "json": None,
}


def type_in_words(hint: Any) -> str:
    """Return a type hint in words, such as "list of whole numbers". A None in it is left to the default."""
    kind, parts = get_origin(hint), [part for part in get_args(hint) if part is not NoneType]
    if hint in TYPES:
        return TYPES[hint]
    if hint is Match:
        return "[loss terms](#loss-terms)"
    if hint is Stage:
        return "[stages](configuration.md#stages)"
    if hint is Variant:
        return "[variants](configuration.md#variants)"
    if kind is Annotated:
        return parts[1].name
    if kind is Literal:
        return ", ".join(f"`{choice}`" for choice in parts)
    if kind in (Union, UnionType):
        return " or ".join(map(type_in_words, parts))
    if kind is list:
        entry = type_in_words(parts[0])
        return f"list of {'lists of ' if get_origin(parts[0]) is tuple else ''}{_plural(entry)}"
    if kind is tuple:
        return f"{len(parts)} {type_in_words(parts[0])}s"
    if kind is dict:
        return f"mapping of names to {' or '.join(map(_plural, type_in_words(parts[1]).split(' or ')))}"
    raise TypeError(f"{hint}: no words for this type")


def _plural(words: str) -> str:
    return words if words.endswith(("s", ")", "`")) else f"{words}s"


def with_article(words: str) -> str:
    """Return a type in words as a sentence has it, such as "a list of numbers", without marks of Markdown."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words).replace("`", "")
    if "`, `" in words:
        return f"one of {plain}"
    return f"a {plain}" if plain.split()[0] in COUNTED else plain


def shown(value: Any) -> str:
    """Return a default as YAML has it, in backticks."""
    return NONE if value in (None, argparse.SUPPRESS, "", [], {}) else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(entry)}' for key, entry in value.items())}}}"
    return str(value)
