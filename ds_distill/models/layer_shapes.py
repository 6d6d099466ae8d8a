"""Layers with heads and feed-forward columns of their own number, as structured pruning leaves them.

A config of transformers states one number for all layers. What is left in each layer stands beside it, in
`config.pruned_layers`, and the stock class is built with linear layers of these sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.models.families import FAMILIES, get_family, get_family_by_type, head_size
from ds_distill.models.families.family import Family
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError

KEY = "pruned_layers"


class LayerShape(NamedTuple):
    """What a layer has: attention heads, and columns of its feed-forward's inner width. Either may be 0."""

    heads: int
    feed_forward: int


def full_shape(config: PretrainedConfig) -> LayerShape:
    """Return the shape of a layer of which nothing was pruned."""
    dims = get_family_by_type(config.model_type).dims(config)
    return LayerShape(dims.heads, dims.feed_forward)


def layer_shapes(config: PretrainedConfig) -> list[LayerShape]:
    """Return the shape of each layer of a model of this config."""
    if not is_pruned(config):
        return [full_shape(config)] * get_family_by_type(config.model_type).dims(config).depth
    return [LayerShape(**layer) for layer in getattr(config, KEY)]


def is_pruned(config: PretrainedConfig) -> bool:
    """Return whether layers of this config have shapes of their own, with which no stock class is built."""
    return getattr(config, KEY, None) is not None


def set_layer_shapes(config: PretrainedConfig, shapes: Sequence[LayerShape]) -> None:
    """State in `config`, in place, the shape of each layer; nothing where all are of the config's own sizes."""
    vars(config).pop(KEY, None)
    if any(shape != full_shape(config) for shape in shapes):
        setattr(config, KEY, [shape._asdict() for shape in shapes])


def check_layer_shapes(config: PretrainedConfig) -> None:
    """Raise ValueError where `pruned_layers` of a config, which may come from anywhere, describes no model."""
    layers, full = getattr(config, KEY, None), full_shape(config)
    if layers is None:
        return
    family = get_family_by_type(config.model_type)
    if family.outputs is None:
        raise ValueError(f"{KEY} is not known of {with_article(family.name)}")
    depth = family.dims(config).depth
    if not isinstance(layers, list) or len(layers) != depth:
        raise ValueError(f"{KEY} must be a list of {depth} entries, one for each layer")
    for index, layer in enumerate(layers):
        if not isinstance(layer, dict) or set(layer) != set(LayerShape._fields):
            raise ValueError(f"{KEY}[{index}] must have {' and '.join(LayerShape._fields)}")
        for key, most in full._asdict().items():
            if type(layer[key]) is not int or not 0 <= layer[key] <= most:
                raise ValueError(f"{KEY}[{index}].{key} = {layer[key]!r:.40}: must be a whole number, 0 to {most}")


def check_prunable(family: Family) -> None:
    """Raise UserError for a family whose heads and feed-forward columns cannot be taken out one by one."""
    if family.outputs is None:
        able = ", ".join(name for name, other in FAMILIES.items() if other.outputs)
        raise UserError(
            f"model_type = {family.name}: its heads and feed-forward columns cannot be pruned layer by layer; give a "
            f"model of one of the families {able}"
        )


def shaped_class(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return a class that builds a model of `model_class`, and gives its layers the shapes that the config states.

    It is for `from_pretrained`, which makes the model itself. The model's own class is `model_class`.
    """

    def make(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        reshape_layers(self)
        self.__class__ = model_class

    attributes = {"__init__": make, "__module__": model_class.__module__}
    return cast(type[PreTrainedModel], type(model_class.__name__, (model_class,), attributes))


def reshape_layers(model: PreTrainedModel) -> None:
    """Leave each layer of a model, in place, the first heads and columns, as many as its config states."""
    if is_pruned(model.config):
        family = get_family(model)
        for layer, shape in zip(family.get_layers(model), layer_shapes(model.config), strict=True):
            cut_layer(family, layer, head_size(model), range(shape.heads), range(shape.feed_forward))


def cut_layer(family: Family, layer: Any, head: int, heads: Sequence[int], columns: Sequence[int]) -> None:
    """Leave a layer, in place, some of its heads and columns, which keep their weights.

    Args:
        family: The family.
        layer: The layer, which may have been cut before.
        head: The width of a head.
        heads: The heads to keep, by their number in this layer.
        columns: The columns of the feed-forward's inner width to keep.
    """
    assert family.outputs and family.ffn
    attention, feed_forward = family.outputs
    kept = torch.tensor([head * number + place for number in heads for place in range(head)], dtype=torch.long)
    if isinstance(layer.get_submodule(attention), nn.Linear):
        if len(heads):
            for name in family.projections:
                layer.set_submodule(name, _take(layer.get_submodule(name), rows=kept))
            layer.set_submodule(attention, _take(layer.get_submodule(attention), columns=kept))
        else:
            bias = Constant(layer.get_submodule(attention))
            mixing = family.projections[0].rpartition(".")[0]
            # in some families the output is a part of what is replaced
            inside = attention.removeprefix(f"{mixing}.") if attention.startswith(f"{mixing}.") else None
            layer.set_submodule(mixing, NoHeads({inside: bias} if inside else {}))
            if not inside:
                layer.set_submodule(attention, bias)
    if isinstance(layer.get_submodule(feed_forward), nn.Linear):
        kept = torch.tensor(list(columns), dtype=torch.long)
        if len(kept):
            layer.set_submodule(family.ffn[0], _take(layer.get_submodule(family.ffn[0]), rows=kept))
            layer.set_submodule(feed_forward, _take(layer.get_submodule(feed_forward), columns=kept))
        else:
            layer.set_submodule(family.ffn[0], NoColumns())
            layer.set_submodule(feed_forward, Constant(layer.get_submodule(feed_forward)))


@torch.no_grad()
def _take(linear: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """Return a linear layer of some rows or columns of another's weight [out, in]."""
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        bias = None if bias is None else bias[rows.to(weight.device)]
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    outer, inner = weight.shape
    with torch.device("meta"):  # its values come from the other
        taken = nn.Linear(inner, outer, bias is not None, dtype=weight.dtype)
    taken.weight = nn.Parameter(weight.clone(), linear.weight.requires_grad)
    if bias is not None:
        taken.bias = nn.Parameter(bias.clone(), linear.bias.requires_grad)
    return taken.train(linear.training)


class Constant(nn.Module):
    """What is left of a linear layer whose inputs are all gone: [..., any] → its bias [..., out]."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = nn.Parameter(linear.bias.detach().clone(), linear.bias.requires_grad)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.bias.expand(*inputs.shape[:-1], -1)


class NoColumns(nn.Module):
    """Stands for the inner linear of a feed-forward without columns."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden[..., :0]


class NoHeads(nn.Module):
    """Stands for attention without heads: hands on the hidden states, through the output where that is a part of it."""

    def __init__(self, parts: dict[str, nn.Module]):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        for part in self.children():
            hidden_states = part(hidden_states)
        return hidden_states, None
