"""Recipe files: where they are, also those that ship with the package, and the settings in one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from ds_distill.config.unknown_keys import unknown_key_message
from ds_distill.config.values import convert
from ds_distill.config.yaml_text import load_keys, read_recipe
from ds_distill.utils.errors import UserError, did_you_mean

# Where the folder ds_configs is. In a checkout, the package has a link to it, which a wheel turns into a folder.
SHIPPED_ROOT = (Path(__file__).parents[1] / "ds_configs").resolve().parent
RECIPES, STUDIES, DEEPSPEED = "*.yaml", "studies/*.yaml", "deepspeed/*.json"
# The keys that hold settings, which a file may also write as one dotted key each.
SECTIONS = ("data", "student", "losses", "training", "finetune")
ALIASES = {"input": "corpus"}
# A recipe may hold these options of commands beside its settings.
COMMAND_OPTIONS = (
    *("teacher", "corpus", "input", "heldout", "tokens", "tokenizer", "model", "from", "output", "debug"),
    *("json", "offline", "push_to_hub", "private"),
    *("fresh", "corpus_megabytes", "from_scratch", "from-scratch", "vocabulary", "teacher_tokens"),  # demo
    *("ranks", "gpu", "price", "memory_gib", "tokens_per_second", "network"),  # estimate
    "untrained",  # evaluate
    *("convert", "part", "assemble", "executor", "parts", "executor_options"),  # prepare
    *("target", "runtime", "shape", "uniform", "hidden_size"),  # prune
    *("latency_table", "sequences", "compare", "distill"),
)


def shipped_files(*patterns: str) -> dict[str, Path]:
    """Return the shipped files that fit the patterns (RECIPES, STUDIES, DEEPSPEED), by name without suffix."""
    return {file.stem: file for pattern in patterns for file in sorted((SHIPPED_ROOT / "ds_configs").glob(pattern))}


def find_file(value: str, source: str, *patterns: str, folder: Path = Path()) -> Path:
    """Return the file that a setting names.

    A name without a suffix and a folder, such as "few_tokens", is that of a shipped file, wherever the command starts.
    A path begins at `folder`. Where nothing is there, a path such as ds_configs/few_tokens.yaml is that of the shipped
    file. A path that leads to no file is returned as it is.

    Args:
        value: The name or the path.
        source: The key and its value, with which an error begins.
        patterns: Which shipped files a name may mean.
        folder: Where a relative path begins.

    Raises:
        UserError: No shipped file has this name.
    """
    if re.fullmatch(r"[\w-]+", value):
        shipped = shipped_files(*patterns)
        if value not in shipped:
            raise UserError(
                f"{source}: no shipped file has this name{did_you_mean(value, shipped)}; the names are "
                f"{', '.join(sorted(shipped))}; write a file of your own with its suffix or its folder, as in ./{value}"
            )
        return shipped[value]
    return next((file for file in (folder / value, SHIPPED_ROOT / value) if os.path.isfile(file)), folder / value)


def load_recipe(text: str, source: str, folder: Path = Path(), above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of a recipe, with those of the recipe that its key `config` names below its own.

    Args:
        text: The YAML document.
        source: What an error begins with, such as "--config R.yaml".
        folder: The folder of the file, where the path under `config` begins.
        above: The files, resolved, that are being read because they name this one.

    Returns:
        The keys as they are written. Where `config` names another recipe, a section's settings have dotted keys.

    Raises:
        UserError: As in load_keys; for a key that is given twice; or for a `config` that names no file, or one of
            those above.
    """
    keys = load_keys(text, source)
    seen: dict[str, str] = {}
    for key, _ in dotted_keys(keys):
        canonical = ALIASES.get(key, key)
        if canonical in seen:
            raise UserError(f"{source}: {key}: is given twice, also as {seen[canonical]}; keep only one of them")
        seen[canonical] = key if "." not in key or key in keys else f"a key of {key.rpartition('.')[0]}"
    for key, value in keys.items():
        if key.startswith("config.") or (key == "config" and isinstance(value, dict | list)):
            raise UserError(
                f"{source}: {key}: the value must be the name of another YAML file, as in config: base.yaml"
            )
    base = keys.pop("config", None)
    if base is None:
        return keys
    source = f"{source}: config: {base}"
    file = find_file(base, source, RECIPES, STUDIES, folder=folder)
    below = load_recipe_file(file, source, above)
    return {ALIASES.get(key, key): value for key, value in (*dotted_keys(below), *dotted_keys(keys))}


def load_recipe_file(file: Path, source: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the keys of a recipe's file; raise UserError as load_recipe does, and where there is no such file."""
    if not file.exists() or file.is_dir():
        raise UserError(f"{source}: no such file; check the path")
    if file.resolve() in above:
        raise UserError(f"{source}: the file includes itself; name another recipe there")
    return load_recipe(read_recipe(file, source), source, file.parent, (*above, file.resolve()))


def read_settings(
    sections: dict[str, Any], keys: dict[str, Any], source: str, others: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Set the settings that a recipe's keys give; leave the options of commands among the keys unread.

    Args:
        sections: The dataclasses to set them in, by section.
        keys: What load_recipe returns.
        source: What an error begins with.
        others: The types of settings in no section, by key.

    Returns:
        The values of such settings, by key.

    Raises:
        UserError: A key is neither a setting nor an option, or a value is not of its setting's type.
    """
    hints, attributes = dict(others or {}), {}
    found: dict[str, Any] = {}
    for name, section in sections.items():
        for attribute, hint in get_type_hints(type(section), include_extras=True).items():
            key = f"{name}.{setting_name(attribute)}"
            hints[key], attributes[key] = hint, attribute
    for key, value in dotted_keys(keys):
        if key in COMMAND_OPTIONS:
            continue
        if key not in hints:
            raise UserError(f"{source}: {unknown_key_message(key, [*hints, *COMMAND_OPTIONS], dashes='')}")
        if value is None and NoneType not in get_args(hints[key]):
            continue  # a key with nothing after it has its default
        converted = convert(value, hints[key], f"{source}: {key}")
        if key in attributes:
            setattr(sections[key.partition(".")[0]], attributes[key], converted)
        else:
            found[key] = converted
    return found


def setting_name(attribute: str) -> str:
    """Return the name that an attribute's setting has in recipes: without the underscore after a Python keyword."""
    return attribute.removesuffix("_")


def dotted_keys(keys: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the keys and values, with a dotted key in place of each that stands nested in a section."""
    pairs: list[tuple[str, Any]] = []
    for key, value in keys.items():
        if key in SECTIONS and (value is None or isinstance(value, dict)):
            pairs += [(f"{key}.{name}", setting) for name, setting in (value or {}).items()]
        else:
            pairs.append((key, value))
    return pairs
