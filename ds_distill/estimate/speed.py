"""The speed of a run before it starts: given, measured here, or scaled from measurements on a kind of GPU."""

from __future__ import annotations

import math
import os
import time
from typing import NamedTuple

from ds_distill.data.shares import Shares
from ds_distill.estimate.estimate import Estimator
from ds_distill.estimate.hardware import (
    CPU_LONG,
    CPU_SHORT,
    DEVICES,
    H100_LARGE,
    H100_SMALL,
    find_device,
    is_measured,
)
from ds_distill.utils.machine import seconds_of_others

# From this share of fixed cost on, a plan advises larger batches.
LARGE_FIXED_SHARE = 0.25
BUSY = 0.15  # share of a machine's cores that others use, from which on a rate that is measured here is too low
_NOT_COUNTED = "communication between them is not counted"
_COUNTED = "the time of their exchange is added in full"


class Speed(NamedTuple):
    """How fast all ranks together are, and how that is known.

    Args:
        tokens_per_second: Tokens per second of all ranks.
        kind: "given", "measured" (here), "estimated" (from measurements on this kind of GPU) or
            "extrapolated".
        basis: What the rate comes from, in words.
        notes: Sentences on what it does not cover.
    """

    tokens_per_second: float
    kind: str
    basis: str
    notes: list[str]


def find_speed(
    estimator: Estimator,
    gpu: str | None,
    micro_batch_size: int,
    ranks: int,
    tokens_per_second: float | None,
    total_tokens: int | None,
) -> Speed:
    """Return the rate of all ranks: the given one, or that of a kind of GPU, or one measured here."""
    if tokens_per_second is not None:
        return Speed(tokens_per_second, "given", "given", [])
    batch = estimator.recipe.training.global_batch_size
    filled, notes = Shares(batch, micro_batch_size, ranks).filled_fraction, []
    useful = ranks * (1 - filled)  # ranks' worth of rows that the losses count
    if filled:
        notes.append(
            f"{ranks} ranks cannot have equal shares of training.global_batch_size = {batch}: {filled:.1%} of the "
            "computed rows are filler rows that top up the smaller shares."
        )
    if gpu is None:
        sequences = min(micro_batch_size, 4) if estimator.device.type == "cpu" else micro_batch_size
        others, began = seconds_of_others(), time.perf_counter()
        rate = estimator.measure_rate(sequences, (total_tokens or math.inf) / ranks)
        busy, cores = (seconds_of_others() - others) / (time.perf_counter() - began), os.cpu_count() or 1
        if busy > BUSY * cores:
            notes.append(
                f"While the rate was measured, other processes used {busy:.1f} of this machine's {cores} cores: when "
                "it is idle, the rate is higher."
            )
        basis = "forward and backward of one rank measured here, × ranks"
        if estimator.device.type == "cpu":
            known = CPU_LONG if estimator.length > 2 * CPU_SHORT.length else CPU_SHORT
            notes.append(
                f"For comparison: BERT-base to DistilBERT ran at {known.tokens_per_second:.0f} tokens per second with "
                f"sequences of {known.length} tokens on {known.device} ({known.date}, {known.report})."
            )
        return Speed(rate * useful, "measured", basis, notes)
    device, reference = find_device(gpu), DEVICES["h100"]
    one = estimator.known_rate(device, micro_batch_size)
    measured = is_measured(gpu.lower())
    basis = (
        f"{H100_SMALL.tokens_per_second:,.0f} and {H100_LARGE.tokens_per_second:,.0f} tokens per second, measured on "
        f"one {reference.title} on {H100_SMALL.date}"
    )
    notes += [
        f"The rate is scaled from BERT-base to DistilBERT at {H100_SMALL.sequences} × {H100_SMALL.length} and "
        f"{H100_LARGE.sequences} × {H100_LARGE.length} tokens per step ({H100_SMALL.report}) to these models and "
        "batches. Evaluations, checkpoints and the preparation of text come on top."
    ]
    if not measured:
        basis += (
            f", scaled to the peak ({device.tflops:g} of {reference.tflops:g} TFLOP/s) and the memory bandwidth "
            f"({device.bandwidth:,} of {reference.bandwidth:,} GB/s) of the data sheet"
        )
        notes.append(
            f"No {device.title} was measured: the rate is an upper estimate, and a card with a low power limit stays "
            f"further below its peak. Source: {device.source}."
        )
    if ranks > 1:
        basis += f", × {ranks} devices"
        notes.append(
            "Training on several GPUs was not measured: the rate is that of one GPU, multiplied by their number, and "
            f"{_NOT_COUNTED}."
        )
    recipe = estimator.recipe
    if recipe.data.mode != "packed":
        notes.append(
            f"data.mode = {recipe.data.mode} was not measured: it takes longer, since padding is computed too and its "
            "blocks are not compiled."
        )
    if recipe.training.compile == "off":
        notes.append("training.compile = off was not measured: it takes longer.")
    if recipe.training.gradient_checkpointing:
        notes.append("Gradient checkpointing was not measured: its second forward takes longer.")
    if one.fixed_share > LARGE_FIXED_SHARE:
        notes.append(
            f"Some {one.fixed_share:.0%} of the time is the fixed cost of a micro-batch, since one has only "
            f"{micro_batch_size * estimator.length:,} tokens; a larger training.global_batch_size and micro_batch_size "
            "are faster."
        )
    kind = "estimated" if measured and ranks == 1 else "extrapolated"
    return Speed(one.tokens_per_second * useful, kind, basis, notes)


def less_network(speed: Speed, tokens_per_second: float, network: float) -> Speed:
    """Return a rate of several nodes with what their devices exchange counted."""
    return speed._replace(
        tokens_per_second=tokens_per_second,
        basis=f"{speed.basis}, less the exchange of gradients and weights at {network:g} GB/s per device",
        notes=[note.replace(_NOT_COUNTED, _COUNTED) for note in speed.notes],
    )
