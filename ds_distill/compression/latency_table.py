"""Measured times of a layer's parts by their size, in a runtime, on inputs of one shape."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from ds_distill.compression.runtimes import load_in_runtime
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.models.families import get_family_by_type
from ds_distill.models.layer_shapes import LayerShape, full_shape, layer_shapes, set_layer_shapes
from ds_distill.models.loading import new_model
from ds_distill.utils.articles import counted
from ds_distill.utils.console import progress
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import read_json_object, write_json
from ds_distill.utils.machine import cores, processor_name

FLOPS = "flops"  # the runtime whose costs are numbers of operations, in billions
FEWEST_STEPS = 8  # of a feed-forward's width
LARGEST_STEP = 128  # columns, which suits the tiles of matrix products
PROBED_LAYERS = 2
ROUNDS = 7
SECONDS = 0.05  # that a model runs per round, and at least three times


@dataclass
class LatencyTable:
    """The costs of a model's parts, in milliseconds, or for the runtime "flops" in billions of operations.

    Attributes:
        model: The sizes that the table is for: family, width, width of the embeddings, heads and feed-forward of its
            layers.
        runtime: The runtime.
        batch: Sequences per call.
        length: Tokens per sequence.
        base: What an encoder takes besides heads and columns, by its depth, {depth: cost}.
        heads: What the attention of one layer takes, by its number of heads, [heads + 1].
        feed_forward: What the feed-forward of one layer takes, by its columns.
        machine: Where times were measured, for readers.
    """

    model: dict[str, Any]
    runtime: str
    batch: int
    length: int
    base: dict[int, float]
    heads: list[float]
    feed_forward: dict[int, float]
    machine: str = ""

    @property
    def unit(self) -> str:
        """The unit of the costs."""
        return "billions of operations" if self.runtime == FLOPS else "ms"

    def of_shapes(self, shapes: Sequence[LayerShape]) -> float:
        """Return what an encoder with layers of these shapes takes, of which the table has the sizes."""
        return self.base[len(shapes)] + sum(
            self.heads[shape.heads] + self.feed_forward[shape.feed_forward] for shape in shapes
        )

    def save(self, file: Path) -> None:
        write_json(file, {"unit": self.unit} | asdict(self))

    @classmethod
    def load(cls, file: Path, config: PretrainedConfig, runtime: str, batch: int, length: int) -> LatencyTable:
        """Read a table that was measured before.

        Args:
            file: The file.
            config: The model that it is to be for.
            runtime: The runtime that it is to be of.
            batch: Sequences per call.
            length: Tokens per sequence.

        Raises:
            UserError: The file has no such table.
        """
        given, full = f"--latency_table {file}", full_shape(config)
        try:
            values = read_json_object(file)
            values.pop("unit", None)  # for readers; it follows from the runtime
            table = cls(**values)
            table.base, table.feed_forward = (
                {int(size): float(value) for size, value in times.items()} for times in (table.base, table.feed_forward)
            )
            table.heads = [float(value) for value in table.heads]
            costs = [*table.base.values(), *table.heads, *table.feed_forward.values()]
            if not np.isfinite(costs).all() or min(costs, default=0.0) < 0:
                raise ValueError("costs must be numbers, 0 or more")
        except (OSError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{given}: not a latency table ({error}); remove it, and it is measured again") from None
        wanted = {"model": _sizes(config), "runtime": runtime, "shape": f"{batch}x{length}"}
        stored = {"model": table.model, "runtime": table.runtime, "shape": f"{table.batch}x{table.length}"}
        for key, value in wanted.items():
            if stored[key] != value:
                raise UserError(
                    f"{given}: its {key} is {_describe(stored[key])}, not {_describe(value)}; give the one that it was "
                    "measured for, or another file"
                )
        depth, widths = get_family_by_type(config.model_type).dims(config).depth, table.feed_forward.keys()
        own = {0, full.feed_forward, *(shape.feed_forward for shape in layer_shapes(config))}
        if len(table.heads) != full.heads + 1 or depth not in table.base or not own <= widths:
            raise UserError(f"{given}: sizes of the model are missing; remove it, and it is measured again")
        if other := sorted(width for width in widths if not 0 <= width <= full.feed_forward):
            raise UserError(
                f"{given}: it has feed-forwards of {other[0]} columns, but the model's have 0 to {full.feed_forward}; "
                "remove it, and it is measured again"
            )
        return table


def _sizes(config: PretrainedConfig) -> dict[str, Any]:
    family = get_family_by_type(config.model_type)
    widths = {"width": family.dims(config).width, "embedding": family.embedding_width(config)}
    return {"family": config.model_type, **widths, **full_shape(config)._asdict()}


def _describe(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def feed_forward_steps(config: PretrainedConfig) -> list[int]:
    """Return the widths that a feed-forward may be cut to, 0 and its own among them."""
    columns = full_shape(config).feed_forward
    step = LARGEST_STEP
    while step > 1 and columns < FEWEST_STEPS * step:
        step //= 2
    return [*range(0, columns, step), columns]


def measure_table(config: PretrainedConfig, runtime: str, batch: int, length: int) -> LatencyTable:
    """Measure the parts of a model of this config.

    Each size is measured in an encoder of few layers that all have it, and nothing else. The least of several times
    counts, since other work on a machine only adds.

    Args:
        config: The model's config, of a family that can be pruned.
        runtime: One of config.pruning.RUNTIMES.
        batch: Sequences per call.
        length: Tokens per sequence.
    """
    depth, heads = get_family_by_type(config.model_type).dims(config).depth, full_shape(config).heads
    own = {shape.feed_forward for shape in layer_shapes(config)}  # which an earlier cut may have left off the steps
    probed, widths = min(PROBED_LAYERS, depth), sorted({*feed_forward_steps(config), *own})
    nothing = LayerShape(0, 0)
    probes = {
        (probed, shape)
        for shape in [nothing, *(LayerShape(n, 0) for n in range(1, heads + 1)), *(LayerShape(0, n) for n in widths)]
    } | {(depth, nothing)}
    configs = {probe: _probe_config(config, *probe) for probe in sorted(probes)}
    times = (
        {probe: forward_flops_per_token(each, length, 0.0) * batch * length / 1e9 for probe, each in configs.items()}
        if runtime == FLOPS
        else measure_encoders(configs, runtime, batch, length)
    )
    empty = times[probed, nothing]

    def per_layer(shape: LayerShape) -> float:
        return max(0.0, times[probed, shape] - empty) / probed

    return LatencyTable(
        _sizes(config),
        runtime,
        batch,
        length,
        {depth: times[depth, nothing]},
        _rising([per_layer(LayerShape(number, 0)) for number in range(heads + 1)]),
        dict(zip(widths, _rising([per_layer(LayerShape(0, number)) for number in widths]), strict=True)),
        "" if runtime == FLOPS else f"{processor_name()}, {counted(cores(), 'core')}",
    )


def _rising(times: list[float]) -> list[float]:
    """Return times of which none is above that of a larger size: other work, which only adds, was in such a one."""
    return [float(value) for value in np.minimum.accumulate(times[::-1])[::-1]]


def _probe_config(config: PretrainedConfig, depth: int, shape: LayerShape) -> PretrainedConfig:
    """Return the config of an encoder of some layers that all have one shape."""
    probe = copy.deepcopy(config)
    setattr(probe, get_family_by_type(config.model_type).names.depth, depth)
    set_layer_shapes(probe, [shape] * depth)
    return probe


def measure_encoders(configs: Mapping[Any, PretrainedConfig], runtime: str, batch: int, length: int) -> dict:
    """Return the least time of a call of an encoder of each config, in milliseconds, by its key.

    Args:
        configs: The configs.
        runtime: A key of `compression.runtimes.NEEDS`.
        batch: Sequences per call.
        length: Tokens per sequence.
    """
    calls: dict[Any, Callable[[], object]] = {}
    with progress(len(configs), f"preparing encoders for {runtime}", "encoder") as bar:
        for probe, config in configs.items():
            calls[probe] = load_in_runtime(new_model(config, head=False).float().eval(), runtime, batch, length)
            bar.update()
    return time_calls(calls, f"latency: {runtime}")


def time_calls(calls: dict[Any, Callable[[], object]], label: str) -> dict[Any, float]:
    """Return the least time of each call, in milliseconds, by its key; they take turns, so that all see one machine.

    Args:
        calls: The calls.
        label: What a progress bar says.
    """
    least = dict.fromkeys(calls, np.inf)
    with progress(ROUNDS, label, "round") as bar:
        for _ in range(ROUNDS):
            for probe, call in calls.items():
                call()
                began, count = time.perf_counter(), 0
                while count < 3 or time.perf_counter() - began < SECONDS:
                    start = time.perf_counter()
                    call()
                    least[probe] = min(least[probe], 1e3 * (time.perf_counter() - start))
                    count += 1
            bar.update()
    return least
