"""How held-out figures are shown: those at positions that show [MASK] first, each with its standard error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FEW_GUESSES = 100  # an accuracy of fewer has a standard error of some five points or more
POSITIONS = {"mask": "at [MASK]", "mlm": "at all selected positions"}


def shared_kind(rows: Iterable[Mapping[str, Any]], prefix: str = "") -> str:
    """Return the kind of positions whose figures all rows have: "mask", or "mlm" where an earlier version wrote one.

    Rows of bare encoders, which guess no tokens, do not count.

    Args:
        rows: Rows of held-out figures, or summaries.
        prefix: The beginning of the rows' keys, such as "heldout_".
    """
    guessing = (row for row in rows if has_guesses(row, prefix))
    return "mask" if all(row.get(f"{prefix}mask_count") is not None for row in guessing) else "mlm"


def has_guesses(row: Mapping[str, Any], prefix: str = "") -> bool:
    """Return whether a row has the figures of a masked-LM model; those of a bare encoder are the terms of its loss."""
    return f"{prefix}mlm_loss" in row or f"{prefix}mask_loss" in row


def matched_terms(row: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of the held-out terms in a row of a bare encoder's figures.

    Their weighted sum, "loss", comes last; beside a single term it says nothing and is left out.
    """
    if has_guesses(row, prefix):
        return []
    keys = (key.removesuffix("_se") for key in row if key.startswith(prefix) and key.endswith("_se"))
    names = [key.removeprefix(prefix) for key in keys if key in row]
    names = [name for name in names if not name.startswith("start_heldout_")]  # a summary has those too
    return names if len(names) > 2 else names[:1]


def describe_terms(row: Mapping[str, Any], prefix: str = "") -> str:
    """Return the held-out terms of a bare encoder in words, such as "cosine 0.031 ± 0.002, loss 0.412 ± 0.011"."""
    return ", ".join(f"{name} {term_cell(row, name, prefix)}" for name in matched_terms(row, prefix))


def term_cell(row: Mapping[str, Any], name: str, prefix: str = "") -> str:
    """Return a held-out term with its standard error as text, in significant digits: it may be small."""
    value, error = row.get(f"{prefix}{name}"), row.get(f"{prefix}{name}_se")
    if value is None:
        return "–"
    return f"{value:.3g}" if error is None else f"{value:.3g} ± {error:.1g}"


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
    if not has_guesses(figures):
        return describe_terms(figures)
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
