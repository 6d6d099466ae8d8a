"""A narrower model: one set of hidden coordinates for all layers, and in each as many heads as fit into it.

Source: Muralidharan et al. 2024 (Minitron), section 2.2, for the choice of coordinates by their activations.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.compression.calibration import Moments
from ds_distill.compression.prune_model import plan_removals, prune_model
from ds_distill.data.batch import Batch
from ds_distill.models.families import get_family, get_family_by_type, head_size
from ds_distill.models.intermediates import EMBEDDINGS, Site, run_encoder
from ds_distill.models.layer_shapes import LayerShape, is_pruned, layer_shapes, set_layer_shapes
from ds_distill.models.loading import new_model
from ds_distill.utils.errors import UserError


def check_width(config: PretrainedConfig, width: int) -> None:
    """Raise UserError where a model of this config cannot be made as narrow as `width`."""
    family = get_family_by_type(config.model_type)
    dims, embedding = family.dims(config), family.embedding_width(config)
    head = dims.width // dims.heads
    if not head <= width < dims.width or width % head:
        raise UserError(
            f"--hidden_size {width}: give a multiple of the model's head size {head}, below its width {dims.width}"
        )
    if is_pruned(config):
        raise UserError(
            f"--hidden_size {width}: the model's layers were pruned before, and have heads of their own number; prune "
            "the width first"
        )
    if embedding != dims.width and width == embedding:
        raise UserError(
            f"--hidden_size {width}: the model's embeddings have this width too, and a model of its class has a "
            "projection only between different widths; give another"
        )


@torch.no_grad()
def rate_coordinates(model: PreTrainedModel, batches: Sequence[Batch]) -> Tensor:
    """Return how much each hidden coordinate is used [H], fp64: its mean magnitude, of what each layer returns.

    Each layer's magnitudes count relative to their mean, so that all layers count alike.

    Args:
        model: The model, in eval mode.
        batches: Text.
    """
    family = get_family(model)
    dims = family.dims(model.config)
    sites = [EMBEDDINGS, *(Site("hidden", layer) for layer in range(dims.depth))]
    sums = {site: torch.zeros(dims.width, dtype=torch.float64) for site in sites}
    for batch in batches:
        _, states = run_encoder(model, batch.input_ids, batch.attention_mask, batch.cu_seqlens, sites)
        for site, values in states.items():
            real = values.flatten(0, 1) if batch.token_mask is None else values[batch.token_mask]
            sums[site] += real.abs().sum(0, dtype=torch.float64).cpu()
    return torch.stack([each / each.mean() for each in sums.values()]).sum(0)


@torch.no_grad()
def prune_width(
    model: PreTrainedModel, width: int, batches: Sequence[Batch], moments: Mapping[tuple[int, str], Moments]
) -> PreTrainedModel:
    """Return a narrower model, of a stock class: the most used coordinates, and the most salient heads of each layer.

    Args:
        model: The model, in fp32; its layers lose heads in place.
        width: The new width, which `check_width` has passed.
        batches: Text.
        moments: Those of `collect_moments`.
    """
    family, config = get_family(model), copy.deepcopy(model.config)
    kept = rate_coordinates(model, batches).argsort(descending=True, stable=True)[:width].sort().values
    heads = width // head_size(model)
    shapes = [LayerShape(heads, shape.feed_forward) for shape in layer_shapes(model.config)]
    whole_width = family.dims(config).width
    prune_model(model, shapes, "saliency", moments, plan_removals(model, moments))
    names = family.names
    if names.embedding and family.embedding_width(config) == whole_width:
        setattr(config, names.embedding, width)
    setattr(config, names.width, width)
    setattr(config, names.heads, heads)
    set_layer_shapes(config, [])
    narrow = new_model(config, head=family.has_head(model)).float()
    source = dict(model.named_parameters(remove_duplicate=False))
    for name, target in narrow.named_parameters(remove_duplicate=False):
        values: Tensor = source[name]
        for axis, (size, whole) in enumerate(zip(target.shape, values.shape, strict=True)):
            if size != whole:  # only the width differs: heads are gone already
                values = values.index_select(axis, kept)
        target.copy_(values)
    return narrow.eval()
