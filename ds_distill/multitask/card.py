"""The model card of a masked-LM model that was tuned on several tasks at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_distill.reporting.card_sections import (
    MADE_WITH,
    card_tags,
    factors_remarks,
    front_matter,
    heldout_results,
    limitations_section,
    made_of,
    provenance_entries,
    training_section,
    usage_section,
)
from ds_distill.reporting.heldout import heldout_cells
from ds_distill.reporting.provenance import Provenance
from ds_distill.reporting.tables import table
from ds_distill.tasks.metrics import Measured
from ds_distill.utils.files import json_text


def multitask_card(
    tasks: Mapping[str, tuple[Measured, Mapping[str, float]]],
    figures: Mapping[str, Any],
    settings: dict,
    origin: Provenance,
    loader: str | None = None,
    rank: int | None = None,
) -> str:
    """Return the README.md of a masked-LM model that was tuned on several tasks.

    Args:
        tasks: By task, the scores that its own head gives on the dev sets, and those of the constant answer.
        figures: The held-out masked-LM figures after (heldout_…) and before (teacher_heldout_…).
        settings: How it was trained.
        origin: What it was made of.
        loader: As in `model_card`.
        rank: As in `model_card`.
    """
    names, title = ", ".join(tasks), f"A masked language model tuned on {len(tasks)} tasks"
    scores = [
        {"task": name, "metric": metric.replace("_", " "), "value": value, "constant": constant.get(metric)}
        for name, (measured, constant) in tasks.items()
        for metric, value in measured.items()
    ]
    drift = [
        {"model": model, "loss": loss, "accuracy": accuracy}
        for model, (loss, accuracy) in (
            (origin.base or "before", heldout_cells(figures, "teacher_heldout_")),
            ("this model", heldout_cells(figures, "heldout_")),
        )
    ]
    return (
        front_matter(
            "masked-lm",
            **provenance_entries(origin),
            tags=card_tags(origin),
            model_name=title,
            eval_results=list(heldout_results(dict(figures), [])),
        )
        + f"# {title}\n\nA masked language model {MADE_WITH}{made_of(origin)}. Its encoder was tuned at once on "
        + f"{names}, each with a head of its own; its masked-LM head and its word embeddings are those that it had "
        + "before. It is a teacher for distillation without tasks.\n\n"
        + usage_section("masked-lm", loader=loader)
        + "## Measured\n\nMasked LM on held-out text, at the positions that show [MASK]; losses are in nats:\n\n"
        + table(drift, {"model": "model", "loss": "loss", "accuracy": "accuracy"})
        + "\n\nOn the dev sets, with the heads of the tasks, which are not in this folder:\n\n"
        + table(scores, {"task": "task", "metric": "metric", "value": "value", "constant": "constant answer"})
        + "\n\n"
        + training_section(origin, factors_remarks(rank))
        + limitations_section(
            origin, f"Nothing but the figures above was measured: no task but {names}, and no other text."
        )
        + "## Settings\n\n```json\n"
        + json_text(settings, indent=2)
        + "\n```\n"
    )
