"""A masked-LM model or a bare encoder with fewer tokens in its vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.utils.errors import UserError


@torch.no_grad()
def trim_model(model: PreTrainedModel, former: Sequence[int]) -> None:
    """Leave a model, in place, the embeddings and outputs of some tokens alone.

    What it computes of a text of these tokens is unchanged, but for the probabilities of masked LM, which sum to 1 over
    fewer tokens.

    Args:
        model: The model, in fp32.
        former: The former ids of its tokens, in their new order.

    Raises:
        UserError: The id of padding changes in a family whose positions start behind it.
    """
    family, config, kept = get_family(model), model.config, torch.tensor(former)
    first = family.first_position(config)
    words = cast(nn.Embedding, model.get_input_embeddings()).weight[kept].clone()
    head: list[Tensor | None] = []
    if family.has_head(model):
        decoder = family.get_decoder(model)
        head = [None if values is None else values[kept].clone() for values in (decoder.weight, decoder.bias)]
    model.resize_token_embeddings(len(former), mean_resizing=False)
    cast(nn.Embedding, model.get_input_embeddings()).weight.copy_(words)
    if head:
        decoder = family.get_decoder(model)
        for target, values in zip((decoder.weight, decoder.bias), head, strict=True):
            if values is not None:
                target.copy_(values)
    places = {number: place for place, number in enumerate(former)}
    for key, value in vars(config).items():
        if key.endswith("_token_id") and isinstance(value, int):
            setattr(config, key, places.get(value))
    if family.first_position(config) != first:
        raise UserError(
            f"pad_token_id = {config.pad_token_id} after trimming: the positions of {family.name} start behind the id "
            "of padding, so it must not change; keep all tokens before it"
        )
