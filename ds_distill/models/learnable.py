"""Which parts of a student train: its layers, its embeddings and its masked-LM head."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.models.recorder import PROJECTIONS
from ds_distill.utils.errors import UserError


def freeze_unreached(
    model: PreTrainedModel, highest: int, *, head: bool, vectors: Collection[str] | None = None
) -> None:
    """Freeze the parameters that no term of a loss reaches.

    Args:
        model: The student.
        highest: The highest layer, from 0, of which a term looks at something; -1 for none.
        head: Whether a term looks at logits.
        vectors: Where of the highest layer terms look at queries, keys or values alone, these; else None.
    """
    attends = highest > 0 or (highest == 0 and vectors is None)
    unreached = set() if attends else {id(parameter) for parameter in _shared_by_layers(model)}
    if vectors is not None:
        unreached |= {id(parameter) for parameter in _behind_projections(model, highest, vectors)}
    for part, parameter in _by_part(model):
        if (part > highest if isinstance(part, int) else part == "head" and not head) or id(parameter) in unreached:
            parameter.requires_grad_(False)


def _behind_projections(model: PreTrainedModel, layer: int, vectors: Collection[str]) -> Iterator[nn.Parameter]:
    """Yield the parameters of a layer on which its queries, keys or values, as named, do not depend."""
    family = get_family(model)
    places = family.layer_places(model.config)
    if places[layer] in places[:layer]:
        return  # the layer below, which has the same weights, is reached as a whole
    module = family.get_layers(model)[places[layer]]
    before = [family.projections[PROJECTIONS.index(name)] for name in vectors]
    if family.absent_in_first:  # a norm before the attention
        before.append(family.absent_in_first)
    for name, parameter in module.named_parameters():
        if not any(name.startswith(f"{start}.") for start in before):
            yield parameter
    if layer == len(places) - 1 and (norm := family.get_final_norm(model)) is not None:
        yield from norm.parameters()


def freeze_all_but(
    model: PreTrainedModel, learnable: Sequence[int | str], highest: int, key: str, *, head: bool
) -> None:
    """Freeze the parameters of a student that a stage does not train. What is frozen already stays so.

    Args:
        model: The student.
        learnable: Layers, from 0, and "embeddings" and "head".
        highest: As of `freeze_unreached`.
        key: The stage, for errors.
        head: As of `freeze_unreached`.

    Raises:
        UserError: A layer does not exist, or no term reaches a part that is named.
    """
    places = get_family(model).layer_places(model.config)
    depth = len(places)
    for part in learnable:
        if isinstance(part, int) and part >= depth:
            raise UserError(f"{key}.learnable: layer {part}: the student has {depth} layers, 0 to {depth - 1}")
        if isinstance(part, int) and (first := places.index(places[part])) != part:
            raise UserError(
                f"{key}.learnable: layer {part}: has the weights of layer {first}; give {first}, which trains both"
            )
        if part > highest if isinstance(part, int) else part == "head" and not head:
            what = f"layer {part}" if isinstance(part, int) else part
            reach = f"layers 0 to {highest}" if highest >= 0 else "the embeddings"
            raise UserError(
                f"{key}.learnable: {what}: the terms of this stage look at {reach} alone"
                f"{'' if head else ' and at no logits'}, so it would get no gradient; leave it out, or add a term"
            )
    for part, parameter in _by_part(model):
        if part not in learnable:
            parameter.requires_grad_(False)


def _by_part(model: PreTrainedModel) -> Iterator[tuple[int | str, nn.Parameter]]:
    """Yield each parameter, tied ones once, with its layer's number, or "embeddings", or "head"."""
    family = get_family(model)
    places = family.layer_places(model.config)
    layer_of = {
        id(parameter): places.index(place)  # where several share it, the first
        for place, layer in enumerate(family.get_layers(model))
        for parameter in layer.parameters()
    }
    if (norm := family.get_final_norm(model)) is not None:  # it has a gradient where the last layer has one
        layer_of |= {id(parameter): len(family.get_layers(model)) - 1 for parameter in norm.parameters()}
    encoder = {id(parameter) for parameter in family.get_encoder(model).parameters()}
    for parameter in model.parameters():
        yield layer_of.get(id(parameter), "embeddings" if id(parameter) in encoder else "head"), parameter


def _shared_by_layers(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """Yield the parameters beside the layers, of which only these make use, such as relative positions."""
    family = get_family(model)
    parent = family.layers.rpartition(".")[0]
    # what makes embeddings as wide as layers lies beside these in an ALBERT, and is a part of the embeddings
    others = {family.layers, family.factors.projection if family.factors else ""}
    if parent != family.encoder:
        within = parent.removeprefix(f"{family.encoder}.")
        for own, module in family.get_encoder(model).get_submodule(within).named_children():
            if f"{parent}.{own}" not in others:
                yield from module.parameters()
