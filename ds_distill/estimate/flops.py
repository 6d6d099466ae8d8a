"""Floating-point operations of a training step."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from transformers import PretrainedConfig

from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.layer_shapes import layer_shapes
from ds_distill.models.loading import new_model

Shapes = Counter[tuple[int, int]]
_linears: dict[tuple[type, str], tuple[Shapes, Shapes]] = {}  # by a config's class and text


def flops_per_token(
    teacher: PretrainedConfig | None, student: PretrainedConfig, length: int, projected: float = 1.0
) -> float:
    """Return the floating-point operations per token of one training step.

    They cover the teacher's forward, the student's forward and backward, and both heads. A product
    of [n, k] and [k, m] counts 2nkm; softmaxes, norms and embeddings are left out.

    Args:
        teacher: The teacher's config, or None without a teacher.
        student: The student's config.
        length: Tokens per sequence.
        projected: The share of positions that the heads run on.
    """
    forward = forward_flops_per_token(student, length, projected)
    return 3 * forward + (forward_flops_per_token(teacher, length, projected) if teacher is not None else 0.0)


def forward_flops_per_token(
    config: PretrainedConfig, length: int, projected: float = 1.0, layers: int | None = None
) -> float:
    """Return the floating-point operations per token of a masked-LM model's forward, from its linear layers.

    Args:
        config: The model's config.
        length: Tokens per sequence, each of which attends to all others, or to those that its layer lets it see. A
            kernel that only masks the others computes their scores too.
        projected: The share of positions that the head runs on; 0 for a bare encoder.
        layers: How many of the layers run; all of them if None.
    """
    encoder, head = linear_shapes(config)
    dims = get_family_by_type(config.model_type).dims(config)
    share = 1.0 if layers is None else layers / dims.depth
    family = get_family_by_type(config.model_type)
    scores_and_values = sum(  # of keys, values and positions
        shape.heads * dims.width / dims.heads * (2 * _seen(length, window) + family.position_rows(config))
        for window, shape in list(zip(family.windows(config), layer_shapes(config), strict=True))[:layers]
    )
    return 2.0 * (share * _products(encoder) + scores_and_values + projected * _products(head))


def _seen(length: int, window: int | None) -> float:
    """Return how many tokens of a sequence a token sees, itself included, on average, up to `window` to either side."""
    reach = length - 1 if window is None else min(window, length - 1)
    return 2 * reach + 1 - reach * (reach + 1) / length


def linear_shapes(config: PretrainedConfig) -> tuple[Shapes, Shapes]:
    """Return how many linear layers of each shape (in, out) a masked-LM model runs in its encoder and in its head.

    Layers that share their weights run each time.
    """
    # An estimate asks for the shapes of a few models tens of times, and to build a model takes a tenth of a second.
    key = type(config), config.to_json_string()
    if key not in _linears:
        _linears[key] = _count_linears(config)
    encoder, head = _linears[key]
    return encoder.copy(), head.copy()


def _count_linears(config: PretrainedConfig) -> tuple[Shapes, Shapes]:
    with torch.device("meta"):  # nothing is allocated
        model = new_model(config, head=True)
    family = get_family(model)
    places = family.layer_places(config)
    runs = {
        part: places.count(place) for place, layer in enumerate(family.get_layers(model)) for part in layer.modules()
    }
    encoder: Shapes = Counter()
    head: Shapes = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            part = encoder if name.startswith(f"{family.encoder}.") else head
            part[module.in_features, module.out_features] += runs.get(module, 1)
    return encoder, head


def _products(shapes: Shapes) -> int:
    return sum(count * inner * outer for (inner, outer), count in shapes.items())
