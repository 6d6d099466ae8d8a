"""Strong scaling: how a step's time falls with more devices, until what they send each other takes the time.

The global batch stays the same, so each device computes less of it, while the gradients and weights
that are exchanged do not shrink. Nothing is taken to overlap, because DeepSpeed's stages 0 to 2
reduce after the backward pass. This module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

NETWORK: Final = 40.0  # GB per second and device: an adapter of 400 Gbit/s per GPU, at four fifths of its rate
NETWORK_IS: Final = "a 400 Gbit/s adapter per GPU at four fifths of its rate, assumed"
PAYS: Final = 0.5  # the share of linear scaling below which more devices are said not to pay
MOST: Final = 4096


class Exchange(NamedTuple):
    """What each device sends in a step.

    Args:
        parameters: The trained parameters.
        stage: The ZeRO stage.
        gradient_bytes: Bytes of a gradient on its way between devices.
        weight_bytes: Bytes of a weight that is gathered.
    """

    parameters: int
    stage: int
    gradient_bytes: int
    weight_bytes: int

    def bytes_per_step(self, devices: int, micro_batches: int) -> float:
        """Return the bytes that each of `devices` sends in a step of `micro_batches` micro-batches.

        A reduction or a gathering by rings sends (n - 1) / n of its size, and an all-reduce is one of
        each. Stages 0 and 1 all-reduce gradients once per step, and stage 1 gathers the updated
        weights. Stage 2 reduces in each micro-batch. So does stage 3, which also gathers the weights
        for each forward and each backward.
        """
        gradients = self.parameters * self.gradient_bytes
        weights = self.parameters * self.weight_bytes
        sent = {
            0: 2 * gradients,
            1: 2 * gradients + weights,
            2: micro_batches * gradients + weights,
            3: micro_batches * (gradients + 2 * weights),
        }[self.stage]
        return sent * (devices - 1) / devices


class Scale(NamedTuple):
    """A step on a number of devices.

    Args:
        devices: Their number.
        compute_ms: Milliseconds in which each computes its share.
        communication_ms: Milliseconds in which it waits for the others' parts.
        tokens_per_second: Tokens per second of all devices.
        share: The share of linear scaling.
    """

    devices: int
    compute_ms: float
    communication_ms: float
    tokens_per_second: float
    share: float


def scale(
    devices: int,
    sequences: int,
    length: int,
    micro_batch_size: int,
    rate: Callable[[int], float],
    exchange: Exchange,
    network: float,
) -> Scale:
    """Return a step of `sequences` sequences on `devices` devices.

    Args:
        devices: The number of devices.
        sequences: Sequences of the global batch.
        length: Tokens per sequence.
        micro_batch_size: The most sequences of a micro-batch.
        rate: Returns one device's tokens per second at a micro-batch of a number of sequences.
        exchange: What each device sends.
        network: GB per second that each device sends.
    """
    # as data.shares divides a batch: every rank runs as many micro-batches of as many rows
    micro_batches = math.ceil(sequences / (micro_batch_size * devices))
    rows = math.ceil(sequences / (micro_batches * devices))
    compute = micro_batches * rows * length / rate(rows)
    communication = exchange.bytes_per_step(devices, micro_batches) / (network * 1e9)
    throughput = sequences * length / (compute + communication)
    return Scale(
        devices, 1e3 * compute, 1e3 * communication, throughput, throughput / (devices * rate(micro_batch_size))
    )


def scales(sequences: int, one: Callable[[int], Scale]) -> list[Scale]:
    """Return the steps on 1, 2, 4 … devices, up to one past those that pay, and to a device per sequence.

    Args:
        sequences: Sequences of the global batch.
        one: Returns the step on a number of devices.
    """
    found = []
    for power in range(MOST.bit_length()):
        if 2**power > min(sequences, MOST):
            break
        found.append(one(2**power))
        if found[-1].share < PAYS:
            break
    return found


def verdict(found: list[Scale], sequences: int) -> str:
    """Return in a sentence where more devices stop paying."""
    last = max((row.devices for row in found if row.share >= PAYS), default=1)
    beyond = next((row for row in found if row.devices > last), None)
    if beyond is None:
        reason = f"a step has only {sequences:,} sequences" if last * 2 > sequences else "more were not estimated"
        return f"Adding devices is worthwhile up to {last:,}; {reason}."
    return (
        f"Adding devices is worthwhile up to {last:,}: with {beyond.devices:,}, each would run at {beyond.share:.0%} "
        f"of its speed alone, because a step computes for {beyond.compute_ms:,.1f} ms and waits "
        f"{beyond.communication_ms:,.1f} ms for the network. A larger training.global_batch_size moves this limit."
    )


def strong_scaling(one: Callable[[int], Scale], sequences: int, tokens: int | None, network: float) -> dict:
    """Return the steps on 1, 2, 4 … devices with the hours of a run of `tokens` tokens, and the verdict on them."""
    rows = scales(sequences, one)
    return {
        "network_gb_per_second": network,
        "network_is": NETWORK_IS if network == NETWORK else "given",
        "rows": [
            {key: round(value, 3) for key, value in row._asdict().items()}
            | {"hours": tokens and round(tokens / row.tokens_per_second / 3600, 2)}
            for row in rows
        ],
        "verdict": verdict(rows, sequences),
    }
