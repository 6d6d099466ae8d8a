"""YAML files in which every scalar stays the text that was written.

The key above it decides what `off`, `no`, `2024` or `1e6` means.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from ds_distill.utils.errors import UserError

# PyYAML assigns these tags to words by their look. Tags that somebody wrote (!!python/…) are not
# among them, and are refused.
IMPLICIT_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "int", "float", "timestamp", "value", "merge")}
MAX_ENTRIES = 10**6


class _TextLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # not all PyYAMLs have C's
    """Reads scalars and keys as text; only `null`, `~` and an empty value become None."""

    def construct_object(self, node, deep=False):
        if isinstance(node, yaml.ScalarNode) and node.tag in IMPLICIT_TAGS:
            return node.value
        return super().construct_object(node, deep)

    def construct_mapping(self, node, deep: bool = False) -> dict:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a name, not a list or a mapping", key.start_mark
                )
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        self.flatten_mapping(node)  # `<<: *name`
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


def _size(value: object, known: dict[int, int]) -> int:
    """Return how many entries a value has with its aliases written out; known: sizes of lists and mappings."""
    if not isinstance(value, list | dict):
        return 1
    if id(value) not in known:
        known[id(value)] = 0  # for a value that holds itself
        entries = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(entry, known) for entry in entries)
    return known[id(value)]


def load_yaml(text: str, source: str) -> object:
    """Return the content of the YAML document `text`: dict, list, str, or None for nothing.

    Raises:
        UserError: Begins with `source`. The text is not YAML, has a tag or a key that has no meaning
            here, or nests without end.
    """
    try:
        content = yaml.load(text, Loader=_TextLoader)
        if _size(content, {}) > MAX_ENTRIES:
            raise UserError(f"{source}: nested aliases (*name) expand to millions of entries; use fewer aliases")
        return content
    except RecursionError:
        raise UserError(f"{source}: it is nested too deeply") from None
    except yaml.YAMLError as error:
        mark, problem = (
            getattr(error, "problem_mark", None),
            getattr(error, "problem", None) or " ".join(str(error).split()),
        )
        position = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{source}{position}: {problem}; correct the YAML there") from error


def load_keys(text: str, source: str, example: str = "training: {seed: 1}") -> dict:
    """Return the keys that the YAML document `text` holds.

    Args:
        text: The document.
        source: What errors begin with.
        example: Keys that such a document may hold, for errors.

    Raises:
        UserError: As in load_yaml, and for a document without keys.
    """
    content = load_yaml(text, source)
    if not isinstance(content, dict):
        kind = "nothing" if content is None else "a list" if isinstance(content, list) else "text"
        raise UserError(f"{source}: contains {kind}; it must contain keys, such as {example}")
    return content


def read_recipe(file: Path, source: str) -> str:
    """Return the text of a YAML file; raise UserError, beginning with `source`, where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text ({error}); save it as UTF-8") from error
