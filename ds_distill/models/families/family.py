"""The facts about a family of encoders: where the parts of its masked-LM model are, and how its config names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """One family, by `config.model_type`.

    Paths are dotted module names in its `...ForMaskedLM` model. Everything goes through the model's
    own modules, so that hooks (ZeRO-3's gathering among them) fire as they would in the model's
    forward.

    Attributes:
        name: The family's `config.model_type`.
        student: The family of its student, which may be its own.
        trunk: The module that returns `last_hidden_state` from input_ids and attention_mask.
        layers: The encoder's blocks.
        embeddings: The owner of the embedding tables.
        decoder: The vocabulary `nn.Linear`.
        head: The dense layer and the norm before the decoder.
        transform: (model, hidden [..., H]) → [..., H], that head.
        block: Within a block, the modules in the order query, key, value, attention output, its
            norm, inner and outer feed-forward, its norm.
        activation: Within a block, the module between inner and outer feed-forward.
        sizes: The config's names of depth, heads, width, feed-forward width and activation.
        dropouts: The config's names of its hidden and attention dropout.
        head_dropouts: The config's names of the dropout in heads that tasks put on the model.
        token_types: Whether the model adds a token-type embedding.
        eps: The LayerNorm's eps where the config cannot state it, else None.
        first_position: The position of the first token, from the config.
    """

    name: str
    student: str
    trunk: str
    layers: str
    embeddings: str
    decoder: str
    head: tuple[str, str]
    transform: Callable[[Any, Tensor], Tensor]
    block: tuple[str, ...]
    activation: str = "intermediate.intermediate_act_fn"
    sizes: tuple[str, str, str, str, str] = (
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "intermediate_size",
        "hidden_act",
    )
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    head_dropouts: tuple[str, ...] = ("classifier_dropout",)
    token_types: bool = True
    eps: float | None = None
    first_position: Callable[[Any], int] = lambda config: 0

    def set_dropout(self, config, dropout: float, heads: bool = False) -> None:
        """Set the dropout of hidden states and attention in `config`; with heads, that of a task's head as well."""
        for key in (*self.dropouts, *(self.head_dropouts if heads else ())):
            setattr(config, key, dropout)

    def decoder_parent_and_name(self, model: PreTrainedModel) -> tuple[nn.Module, str]:
        """Return the module that owns the vocabulary projection, and the projection's attribute name there."""
        parent, _, name = self.decoder.rpartition(".")
        return model.get_submodule(parent), name

    def part(self, model: PreTrainedModel, what: str) -> Any:
        """Return the module, of the family's own class, at the path named `what`: "trunk", "layers" and so on."""
        return model.get_submodule(getattr(self, what))

    @property
    def inner(self) -> str:
        """The inner feed-forward within a block."""
        return self.block[5]

    def positions(self, config) -> int:
        """Return how many tokens a sequence may have."""
        return config.max_position_embeddings - self.first_position(config)

    def measures(self, config) -> tuple[int, int, int, int, str]:
        """Return (depth, heads, width, feed-forward width, activation) of a config."""
        return tuple(getattr(config, name) for name in self.sizes)
