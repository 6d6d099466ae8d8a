"""The model cards of models whose vocabulary was trimmed or whose layers were pruned."""

from __future__ import annotations

from typing import Any

from ds_distill.config.pruning import Pruning
from ds_distill.reporting.card_sections import (
    MADE_WITH,
    NO_HEAD,
    encoder_tags,
    factors_remarks,
    front_matter,
    limitations_section,
    made_of,
    provenance_entries,
    usage_section,
)
from ds_distill.reporting.provenance import Provenance
from ds_distill.reporting.tables import table


def trimmed_card(
    figures: dict[str, Any],
    min_count: int,
    origin: Provenance,
    *,
    head: bool,
    pooler: bool = False,
    loader: str | None = None,
    rank: int | None = None,
) -> str:
    """Return the README.md of a model with fewer tokens in its vocabulary.

    Args:
        figures: The summary of `trim`.
        min_count: How often the text has each token that was kept.
        origin: What it was made of.
        head: Whether it has a masked-LM head.
        pooler: Whether a stock class would add a pooler that was not trained.
        loader: As in `pruned_card`.
        rank: The rank of the factors that its linear layers were trained in; None for whole layers.
    """
    title, kind = "A model with a trimmed vocabulary", "masked-lm" if head else "encoder"
    tags = encoder_tags(origin, loader)
    lost = figures["text_tokens_dropped"] / figures["text_tokens"]
    often = f" {min_count:,} times or more" if min_count > 1 else ""
    split = (
        f"{100 * lost:.2g} % of that text's tokens are split into smaller ones"
        if lost
        else "That text is split into the same tokens as before"
    )
    return (
        front_matter(kind, **provenance_entries(origin), tags=tags, model_name=title)
        + f"# {title}\n\n"
        + f"{'A masked language model' if head else 'An encoder'} {MADE_WITH}{made_of(origin)}. Its vocabulary has "
        + f"the {figures['tokens']:,} tokens, of {figures['tokens_before']:,}, that a text of "
        + f"{figures['text_tokens']:,} tokens uses{often}. {split}; other text is split into smaller pieces. Nothing "
        + f"was trained: {figures['parameters'] / 1e6:.1f} of {figures['parameters_before'] / 1e6:.1f} million "
        + " ".join(["parameters are left, with unchanged values.", *factors_remarks(rank)])
        + "\n\n"
        + ("" if head else NO_HEAD)
        + usage_section(kind, pooler, loader)
        + limitations_section(origin, "Text in other languages, or of another domain, was not measured.")
    )


def pruned_card(
    figures: dict[str, Any],
    pruning: Pruning,
    origin: Provenance,
    *,
    head: bool,
    pooler: bool = False,
    loader: str | None = None,
) -> str:
    """Return the README.md of a model whose layers were pruned.

    Args:
        figures: The summary of `prune`.
        pruning: How it was pruned.
        origin: What it was made of.
        head: Whether it has a masked-LM head.
        pooler: Whether a stock class would add a pooler that was not trained.
        loader: The code of `models.loader_text` where the folder loads as no stock class.
    """
    title, kind = "A pruned model", "masked-lm" if head else "encoder"
    tags = encoder_tags(origin, loader)
    layers = [{"layer": number, **layer} for number, layer in enumerate(figures["layers"])]
    losses = (
        f"Its masked-LM loss at [MASK] on held-out text is {figures['loss_saliency']:.4f} nats, before the cut "
        f"{figures['loss_before']:.4f}. "
        if figures.get("loss_saliency") is not None and figures.get("loss_before") is not None
        else ""
    )
    return (
        front_matter(kind, **provenance_entries(origin), tags=tags, model_name=title)
        + f"# {title}\n\n"
        + f"{'A masked language model' if head else 'An encoder'} {MADE_WITH}{made_of(origin)}. "
        + f"{_describe_cut(pruning, figures)} Nothing was trained. "
        + f"{figures['parameters'] / 1e6:.1f} of {figures['parameters_before'] / 1e6:.1f} million "
        + f"parameters are left. {losses}Distill it from the model that it was made of before you use it.\n\n"
        + table(layers, {"layer": "layer", "heads": "heads", "feed_forward": "feed-forward columns"})
        + "\n\n"
        + ("" if head else NO_HEAD)
        + usage_section(kind, pooler, loader)
        + limitations_section(
            origin,
            "Nothing but the loss above was measured: no task, and no other text."
            if losses
            else "How good it is was not measured.",
        )
    )


def _describe_cut(pruning: Pruning, figures: dict[str, Any]) -> str:
    """Return sentences on what was taken out of a model, which has the figures that the summary of `prune` has."""
    sentences = []
    if pruning.hidden_size:
        sentences.append(
            f"Its width was cut to {pruning.hidden_size}: the hidden dimensions with the largest activations were "
            "kept, and in each layer as many attention heads as fit."
        )
    if not pruning.width_alone:
        parts = "Feed-forward columns, as many in each layer," if pruning.uniform else "Heads and feed-forward columns"
        shape = f"{pruning.batch} x {pruning.length} tokens"
        speedup = figures.get("measured_speedup", figures["speedup"])
        gain = (
            f"needs {speedup:.3g} times fewer operations than with all of them ({shape})"
            if pruning.runtime == "flops"
            else f"is {speedup:.3g} times as fast as with all of them ({pruning.runtime}, {shape})"
        )
        sentences.append(
            f"{parts} were taken out, so that its encoder {gain}, and the weights of the others were corrected for "
            "what is gone."
        )
    return " ".join(sentences)
