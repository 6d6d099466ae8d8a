"""How held-out figures are shown: those at positions that show [MASK] first, each with its standard error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

POSITIONS = {"mask": "at [MASK]", "mlm": "at all selected positions"}


def shared_kind(rows: Iterable[Mapping[str, Any]], prefix: str = "") -> str:
    """Return the kind of positions whose figures all rows have: "mask", or "mlm" where an earlier version wrote one.

    Args:
        rows: Rows of held-out figures, or summaries.
        prefix: The beginning of the rows' keys, such as "heldout_".
    """
    return "mask" if all(row.get(f"{prefix}mask_count") is not None for row in rows) else "mlm"


def with_error(value: float | None, error: float | None) -> str:
    """Return "value ± standard error" to three decimals, the value alone without an error, or "–" without a value."""
    if value is None:
        return "–"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def errors_shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with text in place of each figure whose standard error is in the row, under its name and "_se"."""
    return {key: with_error(value, row[f"{key}_se"]) if f"{key}_se" in row else value for key, value in row.items()}
