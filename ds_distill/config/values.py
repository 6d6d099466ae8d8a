"""The values of options and keys as people write them, read by the type of each.

Examples are `1M` for a whole number and `off` where a word belongs.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from decimal import Decimal
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ds_distill.config.renamed import RENAMED_VALUES
from ds_distill.config.yaml_text import load_yaml
from ds_distill.utils.errors import UserError, did_you_mean

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
SUFFIXES = {"k": 3, "m": 6, "g": 9, "b": 9, "t": 12}  # thousand, million, billion (twice), trillion
NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*))(?:e([+-]?\d{1,9})|([kmgbt]))?", re.ASCII | re.IGNORECASE)
PREFIXED_INTEGER = re.compile(r"[+-]?0(?:x[\da-f]+|o[0-7]+|b[01]+)", re.ASCII | re.IGNORECASE)
NON_FINITE = re.compile(r"([+-]?)\.?(inf|infinity|nan)", re.IGNORECASE)
LARGEST = 2**63
INTEGER_FORMS = "such as 1000000, 1_000_000, 1e6 or 1M"


@dataclass(frozen=True)
class Reader:
    """A named way to read an option of text. A type hint carries it: `Annotated[str, Reader(…)]`.

    Args:
        name: The name in help and errors.
        read: Takes the written value and the key for errors, returns the value, and raises
            UserError.
    """

    name: str
    read: Callable[[Any, str], Any]

    def __repr__(self) -> str:
        return self.name


def read_text(value: Any, key: str) -> str:
    """Return a text that is not empty; raise UserError for an empty one, such as an unset shell variable leaves."""
    if not isinstance(value, str):
        raise UserError(
            f"{key}: {format_value(value)}: expected a single text value{'; put it in quotes' if value is None else ''}"
        )
    if not value.strip():
        raise UserError(f"{key} is empty: give a value or leave it out (does it use a shell variable that is not set?)")
    if "\0" in value:
        raise UserError(f"{key}: {value!r}: contains a NUL character; remove it")
    return value


def read_path(value: Any, key: str) -> str:
    """Return a path, or a name of the hub, with ~ and ~NAME expanded.

    Raises:
        UserError: As in `read_text`, and for the home of an unknown user.
    """
    path = os.path.expanduser(read_text(value, key))
    if path.startswith("~"):
        raise UserError(
            f"{key}: {path}: the home folder of {path.split('/')[0]} is unknown; "
            f"write the full path, or ./{path} if a folder here has this name"
        )
    return path


def read_output(value: Any, key: str) -> str:
    """Return a path to write to; raise UserError also for a name that is not UTF-8, which libraries in Rust need."""
    path = read_path(value, key)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{key}: {path}: this name is not valid UTF-8; choose another name") from None
    return path


UserPath = Annotated[str, Reader("path", read_path)]
OutputPath = Annotated[str, Reader("path", read_output)]
Name = Annotated[str, Reader("name", read_text)]  # never begins with a bracket, so that [a, b] is a list of them


def parse_int(text: str) -> int:
    """Return the whole number that `text` states.

    1000000, 1_000_000, 1e6, 1M, 8.0 and 0x10 are examples.

    Raises:
        ValueError: The text is no whole number.
    """
    value = Decimal(int(text, 0)) if PREFIXED_INTEGER.fullmatch(text.strip()) else _decimal(text)
    if value is None:
        raise ValueError(f"is not a whole number ({INTEGER_FORMS})")
    if value.copy_abs() >= LARGEST:
        raise ValueError("is too large")
    if value != value.to_integral_value():
        raise ValueError("is not a whole number")
    return int(value)


def _decimal(text: str) -> Decimal | None:
    """Return the exact decimal number that `text` states; None where it states none."""
    match = NUMBER.fullmatch(text.strip())
    if not match:
        return None
    exponent = SUFFIXES[match[3].lower()] if match[3] else match[2] or 0
    return Decimal(f"{match[1].replace('_', '')}e{exponent}")


def parse_float(text: str) -> float:
    """Return the number that `text` states, also infinity and not-a-number; raise ValueError where it is none."""
    if match := NON_FINITE.fullmatch(text.strip()):
        return float(match[1] + match[2])
    if PREFIXED_INTEGER.fullmatch(text.strip()):
        return float(Decimal(int(text, 0)))
    value = _decimal(text)
    if value is None:
        raise ValueError("is not a number")
    return float(value)


def parse_bool(text: str) -> bool:
    """Return whether `text` means yes; raise ValueError where it means neither yes nor no."""
    try:
        return BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError("is neither true nor false") from None


SCALARS: dict[type, Callable[[str], Any]] = {int: parse_int, float: parse_float, bool: parse_bool}


def format_value(value: Any) -> str:
    """Return a value as an error shows it; long texts and deep lists are shortened to their beginning."""
    if value is None:
        return "nothing"
    text = " ".join((value if isinstance(value, str) and value else reprlib.repr(value)).split())
    return text if len(text) < 200 else f"{text[:200]} …"


def convert(value: Any, hint: Any, key: str) -> Any:
    """Return `value` as the type that `hint` states.

    Args:
        value: The text of the command line, the result of load_yaml, or a converted value, which
            stays as it is.
        hint: A type hint of str, int, float, bool, Literal, list, tuple, dict, unions of these,
            texts with a Reader, or a dataclass.
        key: The key or option, for errors.

    Raises:
        UserError: `value` is not of this type. The message is one sentence that names the key and
            the value.
    """
    if get_origin(hint) is Annotated:
        return get_args(hint)[1].read(value, key)
    if hint is Any:
        return value
    if get_origin(hint) in (Union, UnionType):
        return _convert_union(value, get_args(hint), key)
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if not isinstance(value, str) or value not in choices:
            if renamed_value := RENAMED_VALUES.get((key.lstrip("-"), value if isinstance(value, str) else "")):
                raise UserError(f"{key}: {value} is called {renamed_value} now")
            problem = "" if value is None else f"{format_value(value)} is not allowed; "
            hint = did_you_mean(format_value(value).lower(), choices, 0.6)
            raise UserError(f"{key}: {problem}choose one of {', '.join(choices)}{hint}")
        return value
    if get_origin(hint) in (list, tuple):
        return _convert_sequence(value, hint, key)
    if get_origin(hint) is dict:
        return {
            name: convert(entry, get_args(hint)[1], f"{key}.{name}")
            for name, entry in _read_mapping(value, key).items()
        }
    if is_dataclass(hint):
        return _convert_dataclass(value, hint, key)
    if hint is str:
        return read_text(value, key)
    if isinstance(value, str):
        try:
            return SCALARS[hint](value)
        except ValueError as error:
            raise UserError(f"{key}: {format_value(value)} {error}") from None
    if isinstance(value, bool) == (hint is bool) and isinstance(value, int if hint is not float else int | float):
        return hint(value)
    problem = "give a value or leave the key out" if value is None else "expected a single value"
    raise UserError(f"{key}: {format_value(value)}: {problem}")


def as_plain(value: Any) -> Any:
    """Return a converted value as numbers, texts, lists and mappings, of which `convert` makes the same value again."""
    if is_dataclass(value):
        return {entry.name: as_plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, dict):
        return {name: as_plain(entry) for name, entry in value.items()}
    return [as_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _convert_union(value: Any, hints: tuple, key: str) -> Any:
    """Return `value` as the first of `hints` that fits; text is tried last."""
    if NoneType in hints and value in (None, "null"):
        return None
    mistakes: list[str] = []
    is_list = isinstance(value, str) and value.lstrip().startswith("[")
    lists_first = isinstance(value, list)
    for hint in sorted(
        (hint for hint in hints if hint is not NoneType),
        key=lambda hint: (hint is str, lists_first and get_origin(hint) is not list),
    ):
        if mistakes and is_list and hint is str:
            continue  # this is a list with a mistake in it
        try:
            return convert(value, hint, key)
        except UserError as error:
            mistakes.append(str(error))
    words = [choice for hint in hints if get_origin(hint) is Literal for choice in get_args(hint)]
    words = [word for word in words if word not in mistakes[0]]
    pairs = any(get_origin(hint) is list for hint in hints) and not isinstance(value, list)
    raise UserError(
        mistakes[0]
        + (f"; or write {', '.join(words)}" if words else "")
        + ("; or give a list" if pairs and not is_list else "")
    )


def _convert_sequence(value: Any, hint: Any, key: str) -> list | tuple:
    """Return a list or tuple.

    A single value is a list of one, numbers and fixed words may be separated by commas, and `[a, b]`
    is read as in YAML.
    """
    kind, items = get_origin(hint), [item for item in get_args(hint) if item is not Ellipsis]
    if (
        isinstance(value, list)
        and len(value) == 1
        and items[0] == Name
        and isinstance(value[0], str)
        and value[0].lstrip().startswith("[")
    ):
        value = value[0]  # one word of the command line
    if isinstance(value, str) and items[0] != UserPath and value.lstrip().startswith("["):
        value = load_yaml(value, f"{key}: {format_value(value)}")
    elif isinstance(value, str) and (items[0] in (int, float) or get_origin(items[0]) is Literal):
        value = [entry.strip() for entry in value.split(",")]
    elif isinstance(value, str):
        value = [value]
    if hasattr(value, "as_dict"):  # jsonargparse's form of dotted keys
        value = value.as_dict()
    if is_dataclass(items[0]) and isinstance(value, dict | cast(type, items[0])):
        value = [value]
    if isinstance(value, dict):
        example = f"{key.lstrip('-')}: [{', '.join(value) or '…'}]"
        raise UserError(f"{key}: expected a list, not a mapping; write {example}")
    if isinstance(value, (int, float)):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{key}: {format_value(value)}: expected a list, such as [a, b]")
    if kind is tuple and len(value) != len(items):
        raise UserError(f"{key}: {format_value(value)}: expected {len(items)} numbers, not {len(value)}")
    hints = items if kind is tuple else items * len(value)
    keys = [f"{key}[{index}]" for index in range(len(value))] if len(value) > 1 else [key]
    return kind(convert(entry, item, name) for entry, item, name in zip(value, hints, keys, strict=False))


def _read_mapping(value: Any, key: str) -> dict[str, Any]:
    """Return a mapping, also one that is written `{name: value}`."""
    if isinstance(value, str):
        value = load_yaml(read_text(value, key), f"{key}: {format_value(value)}")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{key}: {format_value(value)}: expected a mapping, such as {{name: value}}")
    return value


def _convert_dataclass(value: Any, hint: Any, key: str) -> Any:
    """Return a mapping as the dataclass `hint`."""
    hints = get_type_hints(hint, include_extras=True)
    if isinstance(value, hint):  # from Python, where its fields may hold anything
        entries = {entry.name: getattr(value, entry.name) for entry in fields(hint)}
    else:
        entries = _read_mapping(value, key)
    for name in entries:
        if name not in hints:
            raise UserError(f"{key}.{name}: no such key{did_you_mean(name, hints)} ({', '.join(hints)})")
    for entry in fields(hint):
        if entry.name not in entries and entry.default is MISSING and entry.default_factory is MISSING:
            raise UserError(f"{key}.{entry.name} is missing: {format_value(value)} needs {entry.name}: VALUE")
    return hint(**{name: convert(entry, hints[name], f"{key}.{name}") for name, entry in entries.items()})


def mapping_reader(hints: dict[str, Any], key_is: str) -> Reader:
    """Return the reader of a mapping whose entries have types of their own.

    Unknown entries stay as they were written, to be refused later.
    """

    def read(value: Any, key: str) -> dict[str, Any]:
        return {
            name: convert(entry, hints.get(name, Any), f"{key}.{name}")
            for name, entry in _read_mapping(value, key).items()
        }

    return Reader(key_is, read)
