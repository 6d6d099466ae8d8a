"""The command line's parser, built on jsonargparse.

It knows commands, sections and recipes. ds_distill.config.values reads the values, and a mistake is
one sentence.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from jsonargparse import ActionConfigFile, ArgumentParser, set_loader
from jsonargparse._typehints import ActionTypeHint
from yaml import YAMLError

from ds_distill.config.recipe_file import RECIPES, STUDIES, find_file, load_recipe, setting_name
from ds_distill.config.unknown_keys import unknown_key_message
from ds_distill.config.values import as_plain, convert, format_value, read_path
from ds_distill.config.yaml_text import load_yaml
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError

RECIPE = "recipe"  # jsonargparse's name for this module's way to read YAML


def _load(text: str, path: str = "") -> Any:
    """Return the content of a recipe, or of a value in place of one on the command line."""
    if not path:
        return load_yaml(text, "--config")
    return load_recipe(text, f"--config {path}")  # while a file is read, its folder is the current one


set_loader(RECIPE, _load, (YAMLError,))


class Value(ActionTypeHint):
    """An option whose value `convert` reads, from the command line and from YAML alike.

    `with_values` turns jsonargparse's own options into this class.
    """

    def _check_type(self, value, append=False, cfg=None, mode=None):
        key = self.dest if "." in self.dest or not self.option_strings else f"--{self.dest}"
        hint = list[self._typehint] if self.nargs in ("*", "+") else self._typehint
        if type(value) is type(self.default) and value == self.default:
            return value
        if self.nargs in ("*", "+") and value == ["null"]:  # as for a single value, in place of a recipe's
            return []
        previous = cfg.get(self.dest) if cfg else None
        if isinstance(value, tuple) and hasattr(value, "key"):  # --model.hidden_size 64
            if get_origin(hint) is list:
                raise UserError(f"{key}.{value.key}: not an option; give the whole list as --{self.dest} '[{{…}}]'")
            name, _, rest = value.key.partition(".")
            converted = convert({name: {rest: value.val} if rest else value.val}, hint, key)
            merged = dict(previous or {})
            return merged | ({name: {**(merged.get(name) or {}), **converted[name]}} if rest else converted)
        value = convert(value, hint, key)
        return [*(previous or []), *value] if append else value

    def serialize(self, value, dump_kwargs=None):
        """Return a value as YAML writes it, for --print_config.

        jsonargparse's own function knows no dataclass whose options `convert` reads.
        """
        return as_plain(value)


class Flag(argparse.Action):
    """An option without a value; in YAML its key is true or false."""

    def __init__(self, option_strings, dest, help=None):
        super().__init__(option_strings, dest, nargs=0, const=True, default=False, help=help)

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, True)

    def _check_type_(self, value, **_):
        return convert(value, bool, f"--{self.dest}")

    _check_type = _check_type_


class RecipeFile(ActionConfigFile):
    """The option --config: a YAML file, the name of one that ships with the package, or keys written out."""

    shipped = RECIPES

    def __call__(self, parser, cfg, values, option_string=None):
        value = read_path(values, "--config")
        file = find_file(value, f"--config {value}", self.shipped)
        try:
            super().__call__(parser, cfg, str(file) if os.path.isfile(file) else value, option_string)
        except UnicodeDecodeError as error:
            raise UserError(f"--config: not UTF-8 text ({error}); save the recipe as UTF-8") from error


class StudyFile(RecipeFile):
    """The option --config of the command study."""

    shipped = STUDIES


class Parser(ArgumentParser):
    """A parser that raises UserError.

    The options of a command have, beside their values, `typed`: the keys of those that stand on the command line, which
    a file under --config does not.

    Attributes:
        write_help: Takes the parser's options and returns the text of --help.
    """

    write_help: Callable[[list[argparse.Action]], str]

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, parser_mode=RECIPE, **options)
        self.register("action", "store_true", Flag)

    def error(self, message, ex=None):
        chosen = getattr(self, "chosen", "")
        commands = self._subcommands_action._name_parser_map if self._subcommands_action else {}
        raise UserError(explain_parser_error(str(message), known_keys(commands.get(chosen, self)), chosen)) from ex

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        return self.write_help(self._actions)

    def parse_args(self, args=None, *arguments, **options):
        self.chosen = next(iter(args or ()), "")
        commands = self._subcommands_action._name_parser_map if self._subcommands_action else {}
        if self.chosen in commands:
            _report_lists_given_twice(list(args), commands[self.chosen])
        try:
            parsed = super().parse_args(args, *arguments, **options)
        except RecursionError:
            raise UserError("--config: the file includes itself or is nested too deeply") from None
        if self.chosen in commands:
            parsed[self.chosen].typed = _typed_keys(list(args), commands[self.chosen])
        return parsed

    def _check_value_key(self, action, value, key, cfg, append=False):
        if value is None and isinstance(action, Value) and NoneType not in get_args(action._typehint):
            return deepcopy(action.default)  # the key has nothing after it
        if action.metavar == "CONFIG" and not isinstance(action, ActionConfigFile):  # a section, such as training
            if isinstance(value, str) and value.startswith("~"):
                value = read_path(value, action.dest)
            written_out = isinstance(value, str) and (value.lstrip().startswith("{") or Path(value).is_file())
            if isinstance(value, str | list) and not written_out:
                raise UserError(expected_mapping_message(action.dest, value))
        return super()._check_value_key(action, value, key, cfg, append=append)


def _report_lists_given_twice(words: list[str], parser: ArgumentParser) -> None:
    """Report a list that is given twice (`--corpus a --corpus b`): argparse takes the last one alone."""
    lists = {
        name: action.dest for action in parser._actions if action.nargs in ("+", "*") for name in action.option_strings
    }
    last_name: dict[str, str] = {}
    for name in (word.partition("=")[0] for word in words):
        if name in lists and name.startswith("--") and not name.endswith("+"):
            if lists[name] in last_name:
                also = "" if last_name[lists[name]] == name else f", also as {last_name[lists[name]]}"
                log(f"{name}: given twice{also}; only the last one is used. To pass several values, write {name} a b")
            last_name[lists[name]] = name


def _typed_keys(words: list[str], parser: ArgumentParser) -> list[str]:
    """Return the keys of the options among a command's words, a key within a section with the section's name."""
    known, typed = parser._option_string_actions, []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, written, value = word.partition("=")
        name, value = name.removesuffix("+"), value if written else following
        while name.startswith("--") and name not in known and "." in name:
            name = name.rpartition(".")[0]  # a key of an option's value, such as --losses.match.weight
        if not name.startswith("--") or name not in known:
            continue
        key = known[name].dest
        section = _read_mapping(value) if known[name].metavar == "CONFIG" else {}
        typed += [f"{key}.{within}" for within in section] or [key]
    return typed


def _read_mapping(text: str) -> dict:
    """Return what a mapping in YAML says; empty for any other text."""
    try:
        content = load_yaml(text, "") if text.lstrip().startswith("{") else {}
    except (YAMLError, UserError):  # said where the value is read
        content = {}
    return content if isinstance(content, dict) else {}


def with_values(parser: ArgumentParser) -> ArgumentParser:
    """Return the parser with every option read by `convert`, and settings by their names in recipes."""
    # jsonargparse makes the actions of a dataclass's fields itself, and can be given neither a class nor a name for
    # them
    for action in parser._actions:
        if type(action) is ActionTypeHint:
            action.__class__ = Value
        if "." in action.dest and setting_name(action.dest) != action.dest:
            for option in action.option_strings:
                parser._option_string_actions[setting_name(option)] = parser._option_string_actions.pop(option)
            action.option_strings = [setting_name(option) for option in action.option_strings]
            action.dest = setting_name(action.dest)
    return parser


def expected_mapping_message(name: str, value: Any) -> str:
    """Return the sentence for a value that stands where a section of a recipe belongs."""
    expected = "expected a mapping, such as {key: value}, or the name of a YAML file with one"
    return f"{name}: {format_value(value)}: {expected}"


def known_keys(parser) -> list[str]:
    """Return all option names of a parser, without dashes."""
    return [
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    ]


def explain_parser_error(message: str, keys: list[str], command: str = "") -> str:
    """Return a parser's message in one line, with the key that was meant where one is unknown."""
    message = " ".join(line.strip() for line in message.splitlines() if line.strip())
    if unknown := re.search(r"(?:does not accept option|Option) '(.+?)'", message):
        return unknown_key_message(unknown[1].removeprefix(f"{command}."), keys, dashes="")
    if unknown := re.search(r"nrecognized arguments: (\S+)", message):
        if unknown[1].startswith("-"):
            return unknown_key_message(unknown[1].split("=")[0], keys)
        remedy = "put each value after its option, and quote a value that contains spaces"
        return f"{unknown[1]}: not expected here; {remedy} (--help lists all options)"
    if wrong := re.match(r"Parser key \"([\w.]+)\": Unable to load config '(.*?)'", message):
        return expected_mapping_message(wrong[1], wrong[2])
    if wrong := re.match(r'Parser key "([\w.]+)": (.*)', message):
        return f"{'--config' if wrong[1] == 'config' else wrong[1]}: {wrong[2]}"
    if missing := re.match(r"the following arguments are required: [\w.]*?(\w+)$", message):
        return f"{missing[1]}: missing (--help describes the expected value)"
    if empty := re.match(r"argument (\S+): expected (?:at least )?one argument", message):
        return f"{empty[1]}: needs a value after it (--help describes the value)"
    return message
