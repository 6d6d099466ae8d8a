"""Settings whose values have limits."""

from collections.abc import Iterator
from dataclasses import field, fields
from typing import Any


def limited(default: Any, low: float, high: float, word: str = "", each: bool = False) -> Any:
    """Return a dataclass field whose value must be between two limits, as `Recipe.check` sees to.

    Args:
        default: The default. Where it is None, None is no number to check.
        low: The least value.
        high: The greatest value.
        word: A word that may stand in place of the number.
        each: Whether the value is a list, each entry of which is checked.
    """
    return field(default=default, metadata={"limits": (low, high), "word": word, "each": each})


def limited_values(section: Any) -> Iterator[tuple[str, Any, float, float]]:
    """Yield (key, value, low, high) for each number of a section that has limits."""
    for setting in fields(section):
        value, limits = getattr(section, setting.name), setting.metadata.get("limits")
        if not limits or (value is None and setting.default is None):
            continue
        if setting.metadata["each"]:
            for index, entry in enumerate(value):
                yield f"{setting.name}[{index}]", entry, *limits
        elif value != setting.metadata["word"]:
            yield setting.name, value, *limits
