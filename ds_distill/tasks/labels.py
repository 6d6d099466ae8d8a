"""The class that a label stands for: files and models write the same label in many ways."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from ds_distill.tasks.catalog import normalize_name

YES, NO = {"yes", "true", "y", "t", "positive", "pos", "on"}, {"no", "false", "n", "f", "negative", "neg", "off"}
LEAST_LETTERS = 3  # how many letters a short form such as "neg" has at least


def match_class(label: object, names: Sequence[str]) -> int | None:
    """Return the index in `names` of the class that `label` stands for, or None if that is uncertain.

    A label may be any of these:

    - a name, in any case and with any separators;
    - a short form that only one name continues ("neg", "contra"), or the long form of such a name;
    - a class's number, as a number, as text (csv has nothing else) or as transformers' LABEL_1;
    - of two classes a truth value, where true is 1.
    """
    return _match_class(label, tuple(names)) if isinstance(label, str | int | float) else None


@functools.lru_cache(typed=True)  # A file has few labels, in many rows.
def _match_class(label: str | int | float, names: tuple[str, ...]) -> int | None:
    index = class_by_name(label, names)
    return class_by_number(label, names) if index is None else index


def class_by_name(label: object, names: Sequence[str]) -> int | None:
    """Return the same as `match_class`, for names only."""
    text = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label).strip()
    comparisons = [
        lambda name: name == label,
        lambda name: str(name) == text,
        lambda name: normalize_name(name) == normalize_name(text),
    ]
    if parse_number(label) is None:
        comparisons.append(
            lambda name: _continues(_folded(text), _folded(name)) or _continues(_folded(name), _folded(text))
        )
    for is_equal in comparisons:
        matches = [index for index, name in enumerate(names) if is_equal(name)]
        if len(matches) == 1:
            return matches[0]
    return None


def class_by_number(label: object, names: Sequence[str]) -> int | None:
    """Return the same as `match_class`, for numbers and truth values only.

    Where class 1 is the negation of class 0, as not_entailment is, a truth value tells nothing.
    """
    truth = label if isinstance(label, bool) else {"true": True, "false": False}.get(str(label).strip().casefold())
    if truth is not None:
        return _match_truth_value(truth, names) if len(names) == 2 else None
    number, numbers = parse_number(label), [parse_number(name) for name in names]
    # The names are numbers, in whatever order a model has them.
    if number is not None and None not in numbers:
        return numbers.index(number) if numbers.count(number) == 1 else None
    return number if number is not None and 0 <= number < len(names) else None


def are_numbered_otherwise(labels: Iterable[object], names: Sequence[str]) -> bool | None:
    """Return whether the numbers among `labels` are those in the class names, as in "1 star".

    The result is False where they are the classes' own indices, or the names hold no numbers of
    their own. It is None where both may be meant.
    """
    digits = [re.findall(r"\d+", str(name)) for name in names]
    name_numbers = [int(numbers[0]) for numbers in digits if len(numbers) == 1]
    indices = range(len(names))
    if len(name_numbers) < len(names) or len(set(name_numbers)) < len(names) or name_numbers == list(indices):
        return False
    numbers = {number for label in labels if (number := parse_number(label)) is not None}
    if not numbers or all(parse_number(name) is not None for name in names):
        return False
    fits_names, fits_classes = numbers <= set(name_numbers), numbers <= set(indices)
    return None if fits_names and fits_classes else fits_names


def _match_truth_value(truth: bool, names: Sequence[str]) -> int | None:
    """Return which of two classes a truth value means.

    The names decide where they mean yes or no; otherwise class 1 means yes.
    """
    meanings = [True if _folded(name) in YES else False if _folded(name) in NO else None for name in names]
    if meanings[0] is not None or meanings[1] is not None:
        yes = meanings.index(True) if True in meanings else 1 - meanings.index(False)
        return None if meanings[0] == meanings[1] else yes if truth else 1 - yes
    # Class 1 may be the negation of class 0, as not_entailment is.
    return None if normalize_name(names[1]).endswith(normalize_name(names[0])) else int(truth)


def parse_number(label: Any) -> int | None:
    """Return the whole number that `label` is or names: 1, 1.0, "1", "1.0" and "LABEL_1" are all 1."""
    if isinstance(label, bool):
        return None
    numbered = re.fullmatch(r"label[\s_-]*(\d+)", str(label).strip().casefold())
    try:
        number = float(numbered[1] if numbered else label)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and number.is_integer() else None


def match_classes(labels: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Return which of `names` each of a model's `labels` stands for.

    It is None unless each of `names` is meant by exactly one of them. Labels that are not the names
    themselves and are numbered from 1 on are in the order of their numbers.
    """
    if sorted(labels) == sorted(names) and len(set(names)) == len(names):
        return [
            list(names).index(label) for label in labels
        ]  # also where the names are numbers in an order of their own
    numbers = [parse_number(name) for name in labels]
    if sorted(number or 0 for number in numbers) == list(range(1, len(labels) + 1)):
        matches: list[int | None] = [number - 1 for number in numbers if number is not None]
    else:
        matches = [match_class(name, names) for name in labels]
    known = [number for number in matches if number is not None]
    return known if len(known) == len(matches) and sorted(known) == list(range(len(names))) else None


def _folded(name: object) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", str(name)).casefold()).strip()


def _continues(short: str, long: str) -> bool:
    """Return whether `long` is `short` followed by more letters."""
    return len(short) >= LEAST_LETTERS and long.startswith(short) and long[len(short) :][:1].isalpha()
