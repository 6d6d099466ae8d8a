"""Where each family of encoders keeps its trunk, its masked-LM head and its vocabulary projection.

One entry a family, by `config.model_type`.  Everything goes through the model's own modules, so that hooks (ZeRO-3's gathering among
them) fire as they would in the model's forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.errors import UserError


@dataclass(frozen=True)
class Family:
    """How to reach the parts of one family's `...ForMaskedLM` model.

    trunk(model): the module that gives `last_hidden_state` from input_ids and attention_mask.
    transform(model, hidden): [..., H] → [..., H], the head up to, not including, the vocabulary projection.
    decoder_parent_and_name(model): the module owning the vocabulary `nn.Linear`, and its attribute name there.
    layers(model), embeddings(model): the encoder's blocks, and the module owning the embedding tables.
    """

    name: str
    trunk: Callable[[PreTrainedModel], nn.Module]
    transform: Callable[[PreTrainedModel, Tensor], Tensor]
    decoder_parent_and_name: Callable[[PreTrainedModel], tuple[nn.Module, str]]
    layers: Callable[[PreTrainedModel], nn.ModuleList]
    embeddings: Callable[[PreTrainedModel], nn.Module]

    def decoder(self, model: PreTrainedModel) -> nn.Linear:
        """The vocabulary projection itself: weight [V, H], bias [V]."""
        parent, name = self.decoder_parent_and_name(model)
        return getattr(parent, name)


def _distilbert_transform(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))


FAMILIES: dict[str, Family] = {
    "bert": Family(
        name="bert",
        trunk=lambda model: model.bert,
        transform=lambda model, hidden: model.cls.predictions.transform(hidden),
        decoder_parent_and_name=lambda model: (model.cls.predictions, "decoder"),
        layers=lambda model: model.bert.encoder.layer,
        embeddings=lambda model: model.bert.embeddings,
    ),
    "distilbert": Family(
        name="distilbert",
        trunk=lambda model: model.distilbert,
        transform=_distilbert_transform,
        decoder_parent_and_name=lambda model: (model, "vocab_projector"),
        layers=lambda model: model.distilbert.transformer.layer,
        embeddings=lambda model: model.distilbert.embeddings,
    ),
}


def family_of(model: PreTrainedModel) -> Family:
    """The family of a masked-LM model.  Raises UserError for a family that is not in the table."""
    return family_of_type(model.config.model_type)


def family_of_type(model_type: str | None) -> Family:
    """The family of a `config.model_type`.  Raises UserError for one that is not in the table."""
    if model_type not in FAMILIES:
        raise UserError(f"model_type = {model_type!r}: not a supported encoder; use one of: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
