"""A row's values by name, where a name may stand over several of them."""

from __future__ import annotations


class Ambiguous:
    """Takes the place of the values that share a name and differ."""


AMBIGUOUS = Ambiguous()


def make_row(pairs: list[tuple[str, object]]) -> dict:
    """Return the values of a row by name, AMBIGUOUS where those of one name differ; json's object_pairs_hook, too."""
    row = dict(pairs)
    if len(row) < len(pairs):
        row |= {name: AMBIGUOUS for name, value in pairs if row[name] != value}
    return row
