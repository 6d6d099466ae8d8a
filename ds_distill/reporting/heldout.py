"""How held-out figures are shown: those at positions that show [MASK] first, each with its standard error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FEW_GUESSES = 100  # an accuracy of fewer has a standard error of some five points or more
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


def describe_heldout(figures: Mapping[str, Any]) -> str:
    """Return held-out figures in words, such as "loss 2.413 ± 0.041 nats, accuracy 51.2 ± 0.8 % at [MASK]"."""
    loss, accuracy = heldout_cells(figures)
    return f"loss {loss} nats, accuracy {accuracy} {POSITIONS[shared_kind([figures])]}"


def heldout_cells(figures: Mapping[str, Any], prefix: str = "") -> tuple[str, str]:
    """Return held-out loss in nats and accuracy in percent as text, at [MASK] where these figures are there.

    Args:
        figures: Held-out figures, or a summary.
        prefix: The beginning of their keys, such as "heldout_".
    """
    begin = f"{prefix}{shared_kind([figures], prefix)}_"
    accuracy, error = figures.get(f"{begin}accuracy"), figures.get(f"{begin}accuracy_se")
    if accuracy is None:
        return "–", "–"
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return with_error(figures[f"{begin}loss"], figures.get(f"{begin}loss_se")), f"{100 * accuracy:.1f}{spread} %"


def share_kept(accuracy: float | None, teachers: float | None) -> float | None:
    """Return a model's share of its teacher's accuracy; None where one was not measured, or the teacher has none."""
    return accuracy / teachers if accuracy is not None and teachers else None
