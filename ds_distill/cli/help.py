"""The text of `--help`: examples, the common options, then all others by section, in at most 80 columns."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ds_distill.cli.argument_parser import Value
from ds_distill.cli.option_words import COMMON, NONE, shown, type_in_words, with_article

WIDTH, COLUMN = 80, 26
SECTIONS = {
    "data": "data: the text, its preparation and its masking",
    "student": "student: shape and initialization",
    "losses": "losses: weights of the loss terms",
    "training": "training: optimization, precision and checkpoints",
    "finetune": "finetune: training settings of each fine-tuning run",
}


def command_help(name: str, command: Any, actions: Iterable[argparse.Action]) -> str:
    """Return the help of a command.

    Args:
        name: The command's name.
        command: Its module, with PURPOSE, EXAMPLES and COMMON_OPTIONS.
        actions: All of its options, in the order of its parser.
    """
    options = {action.dest: action for action in actions if not _is_section(action)}
    common = [options.pop(key) for key in command.COMMON_OPTIONS]
    groups: dict[str, list[argparse.Action]] = {"common options": common, "other options": []}
    for key, action in options.items():
        section = key.partition(".")[0] if "." in key else ""
        groups.setdefault(SECTIONS.get(section, "other options"), []).append(action)
    groups["every command"] = [action for action in groups["other options"] if action.dest in COMMON]
    groups["other options"] = [action for action in groups["other options"] if action.dest not in COMMON]
    parts = [
        f"usage: ds-distill {name} [options]",
        textwrap.fill(f"{command.PURPOSE[0].upper()}{command.PURPOSE[1:]}.", WIDTH),
        "examples:\n" + textwrap.indent(command.EXAMPLES.strip(), "  "),
        *(f"{title}:\n" + "\n".join(map(_option, entries)) for title, entries in groups.items() if entries),
        textwrap.fill(
            "Each option may also stand in the YAML file of --config. Numbers may be written as 1e6 or 1M.", WIDTH
        ),
    ]
    return "\n\n".join(parts) + "\n"


def program_help(commands: Mapping[str, Any]) -> str:
    """Return the help of the program, with the purpose of each command."""
    lines = [_two_columns(name, module.PURPOSE, 12) for name, module in commands.items()]
    return (
        "usage: ds-distill COMMAND [options]\n\n"
        "Distill pretrained encoders into smaller ones during pretraining, on DeepSpeed.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "ds-distill COMMAND --help shows examples and all options of a command.\n"
        "ds-distill --version prints the version.\n"
    )


def _is_section(action: argparse.Action) -> bool:
    """Return whether an option only concerns a whole section or type; --config reads all sections from a file."""
    return (action.dest in SECTIONS and not isinstance(action, Value)) or action.dest.endswith(".help")


def _option(action: argparse.Action) -> str:
    """Return an option's names, its description, and type and default in words."""
    names = [name for name in action.option_strings if not name.endswith("+")] or [action.dest.upper()]
    text = (COMMON.get(action.dest) or action.help or "").rstrip(".").replace("`", "")
    value, facts = "", []
    if isinstance(action, Value):
        hint = list[action._typehint] if action.nargs in ("+", "*") else action._typehint  # type: ignore[name-defined]
        value = _placeholder(hint)
        if not ("|" in value or value.startswith(("PATH", "NAME"))):  # these show what may be written
            facts.append(with_article(type_in_words(hint)))
    elif action.dest == "config":
        value = "FILE"
    if value and (default := shown(action.default)) != NONE:
        facts.append(f"default {default.strip('`')}")
    left = ", ".join(names) + (f" {value}" if value and action.option_strings else "")
    return _two_columns(left, text + (f" ({'; '.join(facts)})" if facts else ""), COLUMN)


def _placeholder(hint: Any) -> str:
    """Return what stands for a value of this type, such as N, PATH... or on|off."""
    kind, parts = get_origin(hint), [part for part in get_args(hint) if part is not NoneType]
    if kind is Literal:
        choices = "|".join(map(str, parts))
        return choices if len(choices) <= 24 else "WORD"
    if kind in (Union, UnionType):
        return "|".join(map(_placeholder, parts))
    if kind is Annotated:
        return {"name": "NAME", "path": "PATH", "whole number, time or `auto`": "N|TIME"}.get(parts[1].name, "'{...}'")
    if kind is list and get_origin(parts[0]) is Annotated:
        return f"{_placeholder(parts[0])}..."
    if kind in (list, tuple):
        return "'[...]'"
    return {int: "N", float: "X", bool: "true|false", str: "TEXT"}.get(hint, "'{...}'")


def _two_columns(left: str, right: str, column: int) -> str:
    lines = textwrap.wrap(right, WIDTH - column, break_long_words=False, break_on_hyphens=False)
    first = f"  {left}".ljust(column)
    if len(left) + 2 >= column:
        return "\n".join([first.rstrip(), *(" " * column + line for line in lines)])
    return "\n".join([first + (lines[0] if lines else ""), *(" " * column + line for line in lines[1:])])
