"""The sentence that says a plan: whether it fits, its tokens, its hours and its dollars."""

from __future__ import annotations

from collections.abc import Sequence

from ds_distill.estimate.known_models import KnownModel
from ds_distill.models.folder import ModelFolder
from ds_distill.recipe import Recipe


def write_sentence(estimate: dict, teachers: Sequence[ModelFolder | KnownModel], recipe: Recipe, stage: int) -> str:
    """Return the plan in one sentence."""
    ranks, rate, price = estimate["ranks"], estimate["tokens_per_second"], estimate["price_per_device_hour"]
    machine = estimate["gpu"] or f"this machine's {'CPU' if estimate['device'] == 'cpu' else 'GPU'}"
    count = f"{ranks} × " if ranks > 1 else "one " if estimate["gpu"] else ""
    verdict, _, remedy = estimate["advice"].partition("; ")
    place = "" if "ZeRO stage" in verdict else f" at ZeRO stage {stage}"
    need = estimate["stages"][stage]["peak"]
    names = " and ".join(teacher.name for teacher in teachers)
    start = (
        f"Estimate: distilling {names} on {count}{machine} {verdict}{place} with micro-batches of "
        f"{estimate['micro_batch_size']} × {recipe.data.sequence_length} tokens, which need {need:.1f} of "
        f"{estimate['memory_gib']} GiB per device"
    )
    if not verdict.startswith("fits"):
        return f"{start}; {remedy}."
    tokens = estimate["tokens"] or 1e9
    run = f"{_number(tokens)} tokens" if estimate["tokens"] else "a billion tokens"
    corpus, epochs = estimate["corpus"], recipe.training.epochs
    if corpus and not recipe.training.max_tokens and (corpus["title"] or epochs > 1):
        run += f" ({epochs} epoch{'s' if epochs > 1 else ''} of {corpus['title'] or _number(corpus['tokens'])})"
    hours = tokens / rate / 3600
    kind = {"given": "at the given rate", "measured": "at the rate measured here"}.get(
        estimate["rate_kind"], estimate["rate_kind"]
    )
    cost = (
        f" and cost about {_dollars(hours * ranks * price)} at {_dollars(price)} per device and hour" if price else ""
    )
    return f"{start}, and {run} take about {_duration(hours)} ({kind}){cost}."


def _number(tokens: float) -> str:
    """Return a number of tokens in words: 12.9 billion."""
    for unit, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if tokens >= unit:
            return f"{tokens / unit:.3g}{word}"
    return f"{tokens:,.0f}"


def _duration(hours: float) -> str:
    """Return a duration in its natural unit."""
    if hours < 1 / 60:
        return f"{hours * 3600:.2g} seconds"
    if hours < 1:
        return f"{hours * 60:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours:,.0f} hours ({hours / 24:,.0f} days)"


def _dollars(amount: float) -> str:
    """Return an amount of US dollars."""
    return f"${amount:,.2f}" if amount < 100 else f"${amount:,.0f}"
