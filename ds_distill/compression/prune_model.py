"""The cut of a model: which heads and columns each layer loses, by one of three methods, and what the others become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.compression.calibration import PARTS, Moments
from ds_distill.compression.surgeon import LOT, Removal, correct_linear, damped, plan_removal
from ds_distill.models.families import get_family, head_size
from ds_distill.models.layer_shapes import LayerShape, cut_layer, layer_shapes, set_layer_shapes
from ds_distill.utils.console import progress

Method = Literal["saliency", "magnitude", "first"]
METHODS: tuple[Method, ...] = ("saliency", "magnitude", "first")


@torch.no_grad()
def plan_removals(model: PreTrainedModel, moments: Mapping[tuple[int, str], Moments]) -> dict[tuple[int, str], Removal]:
    """Return, for each part of each layer, in what order the surgeon removes its heads or columns.

    An error counts as the norm after it shows it: relative to the variance of what the norm reads, times the norm's
    weights. So errors of different layers are on one scale.

    Args:
        model: The model.
        moments: Those of `collect_moments`.
    """
    plans = {}
    with progress(len(moments), "saliency", "part") as bar:
        for (number, part), moment in moments.items():
            linear, norm = _get_output(model, number, part)
            weight = norm.weight.double()[:, None] * moment.gain.sqrt() * linear.weight.double()
            # few columns go one by one: a lot may hold two that make up for each other
            size, lot = (head_size(model), 1) if part == "heads" else (1, max(1, min(LOT, linear.in_features // 64)))
            plans[number, part] = plan_removal(weight, damped(moment.covariance), size, lot)
            bar.update()
    return plans


@torch.no_grad()
def prune_model(
    model: PreTrainedModel,
    shapes: Sequence[LayerShape],
    method: Method,
    moments: Mapping[tuple[int, str], Moments] | None = None,
    removals: Mapping[tuple[int, str], Removal] | None = None,
    *,
    uniform: bool = False,
) -> None:
    """Cut the layers of a model, in place, to shapes, and state these in its config.

    Args:
        model: The model, in fp32.
        shapes: What to leave in each layer, no more than it has.
        method: What goes: "saliency" what `removals` says, and the weights of the rest are corrected; "magnitude" what
            has the smallest weights; "first" all but the first.
        moments: Those of `collect_moments`, for "saliency".
        removals: Those of `plan_removals`, for "saliency".
        uniform: State the width of the feed-forwards, which all layers share, as the stock class's own. It is then not
            known of the model that it was wider, so that no further cut can be relative to the whole one.
    """
    family, head = get_family(model), head_size(model)
    for number, (layer, now, shape) in enumerate(
        zip(family.get_layers(model), layer_shapes(model.config), shapes, strict=True)
    ):
        kept = {}
        for part in PARTS:
            had, count = getattr(now, part), getattr(shape, part)
            if count == had:
                kept[part] = list(range(had))
            elif method == "saliency":
                assert moments and removals
                kept[part] = removals[number, part].kept(count)
                moment = moments[number, part]
                inputs = _inputs(kept[part], head if part == "heads" else 1)
                linear = _get_output(model, number, part)[0]
                correct_linear(linear, damped(moment.covariance), moment.mean, inputs)
            elif method == "magnitude":
                kept[part] = sorted(_magnitudes(model, number, part).argsort(descending=True)[:count].tolist())
            else:
                kept[part] = list(range(count))
        cut_layer(family, layer, head, kept["heads"], kept["feed_forward"])
    if uniform:
        setattr(model.config, family.names.feed_forward, shapes[0].feed_forward)
    set_layer_shapes(model.config, shapes)


def _get_output(model: PreTrainedModel, number: int, part: str) -> tuple[nn.Linear, nn.LayerNorm]:
    """Return the output product of a part of a layer, and the norm that reads what it adds."""
    family = get_family(model)
    layer, place = family.get_layers(model)[number], PARTS.index(part)
    assert family.outputs
    names = family.outputs[place], family.output_norms[place]
    return cast(tuple[nn.Linear, nn.LayerNorm], tuple(layer.get_submodule(name) for name in names))


def _magnitudes(model: PreTrainedModel, number: int, part: str) -> Tensor:
    """Return the sum of the squared weights of each head or column of a part, into it and out of it."""
    family = get_family(model)
    layer, output = family.get_layers(model)[number], _get_output(model, number, part)[0]
    assert family.ffn
    squares = output.weight.square().sum(0)
    for name in family.projections if part == "heads" else family.ffn[:1]:
        squares = squares + layer.get_submodule(name).weight.square().sum(1)
    return squares.view(-1, head_size(model) if part == "heads" else 1).sum(1)


def _inputs(structures: Iterable[int], size: int) -> list[int]:
    return [number * size + place for number in structures for place in range(size)]
