"""Which parts of a student train: its layers, its embeddings and its masked-LM head."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.utils.errors import UserError


def freeze_all_but(
    model: PreTrainedModel, learnable: str | Sequence[int | str], highest: int, key: str, *, head: bool
) -> None:
    """Freeze the parameters of a student that a stage does not train.

    Those that no term reaches are frozen too: they would get no gradient, and an optimizer would still decay them.
    What is frozen already stays so.

    Args:
        model: The student.
        learnable: "all", or a list of layers, from 0, and of "embeddings" and "head".
        highest: The highest layer whose output a term looks at.
        key: The stage, for errors.
        head: Whether a term looks at logits.

    Raises:
        UserError: A layer does not exist, or no term reaches a part that is named.
    """
    family = get_family(model)
    layers = family.get_layers(model)
    layer_of = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer.parameters()}
    encoder = {id(parameter) for parameter in family.get_encoder(model).parameters()}
    for part in learnable if isinstance(learnable, list) else ():
        if isinstance(part, int) and part >= len(layers):
            raise UserError(
                f"{key}.learnable: layer {part}: the student has {len(layers)} layers, 0 to {len(layers) - 1}"
            )
        if (isinstance(part, int) and part > highest) or (part == "head" and not head):
            what = f"layer {part}" if isinstance(part, int) else part
            raise UserError(
                f"{key}.learnable: {what}: the terms of this stage look at layers 0 to {highest} alone"
                f"{'' if head else ' and at no logits'}, so it would get no gradient; leave it out, or add a term"
            )
    for parameter in model.parameters():
        part = layer_of.get(id(parameter), "embeddings" if id(parameter) in encoder else "head")
        reached = part <= highest if isinstance(part, int) else head or part == "embeddings"
        if not reached or (learnable != "all" and part not in learnable):
            parameter.requires_grad_(False)
