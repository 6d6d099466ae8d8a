"""The model card of a model whose vocabulary was trimmed."""

from __future__ import annotations

from typing import Any

from ds_distill.reporting.card_sections import (
    MADE_WITH,
    NO_HEAD,
    card_tags,
    front_matter,
    limitations_section,
    made_of,
    provenance_entries,
    usage_section,
)
from ds_distill.reporting.provenance import Provenance


def trimmed_card(figures: dict[str, Any], origin: Provenance, *, head: bool, pooler: bool = False) -> str:
    """Return the README.md of a model with fewer tokens in its vocabulary.

    Args:
        figures: The summary of `trim`.
        origin: What it was made of.
        head: Whether it has a masked-LM head.
        pooler: Whether a stock class would add a pooler that was not trained.
    """
    title, kind = "A model with a trimmed vocabulary", "masked-lm" if head else "encoder"
    lost = figures["text_tokens_dropped"] / figures["text_tokens"]
    split = (
        f"{100 * lost:.2g} % of that text's tokens are split into smaller ones"
        if lost
        else "That text is split into the same tokens as before"
    )
    return (
        front_matter(kind, **provenance_entries(origin), tags=card_tags(origin), model_name=title)
        + f"# {title}\n\n"
        + f"{'A masked language model' if head else 'An encoder'} {MADE_WITH}{made_of(origin)}. Its vocabulary has "
        + f"the {figures['tokens']:,} tokens, of {figures['tokens_before']:,}, that a text of "
        + f"{figures['text_tokens']:,} tokens uses. {split}; other text is split into smaller pieces. Nothing was "
        + f"trained: {figures['parameters'] / 1e6:.1f} of {figures['parameters_before'] / 1e6:.1f} million parameters "
        + "are left, and they have their values.\n\n"
        + ("" if head else NO_HEAD)
        + usage_section(kind, pooler)
        + limitations_section(origin, "Text in other languages, or of another domain, was not measured.")
    )
