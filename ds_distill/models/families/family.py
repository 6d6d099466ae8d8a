"""The facts about a family of encoders: where the parts of its masked-LM model are, and how its config names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel


class Dims(NamedTuple):
    """The sizes of an encoder. `activation` is the name of its feed-forward activation."""

    depth: int
    heads: int
    width: int
    feed_forward: int
    activation: str


@dataclass(frozen=True)
class ConfigNames:
    """A config's names for the sizes of `Dims`, its dropouts, those in heads of tasks, and the eps of its LayerNorms.

    Attributes:
        embedding: The key of the width of the embeddings and of the decoder's input, where that may differ from the
            encoder's.
        groups: The key of the number of groups of layers that share their weights, where layers can share them.
        per_layer: The keys of lists that have one entry for each layer.
        sizes: The keys of further whole numbers that must be 1 or more.
    """

    depth: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    width: str = "hidden_size"
    feed_forward: str = "intermediate_size"
    activation: str = "hidden_act"
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    head_dropouts: tuple[str, ...] = ("classifier_dropout",)
    embedding: str | None = None
    groups: str | None = None
    eps: str = "layer_norm_eps"
    per_layer: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()

    @property
    def dims(self) -> tuple[str, str, str, str, str]:
        """The names of the five sizes, in the order of `Dims`."""
        return self.depth, self.heads, self.width, self.feed_forward, self.activation


@dataclass(frozen=True)
class AsBert:
    """A family's weights under the names of BERT's, through which a student of another class takes them.

    Attributes:
        renames: Parts of a parameter's name in the family's masked-LM model, and BERT's names of them, replaced in
            this order. A parameter whose new name BERT does not have is left out. The projection behind embeddings of
            their own width, which no BERT has, is called `bert.embeddings_project`.
        layers: Whether the layers compute what BERT's do, and so can be copied between the families.
        fold: (config, parameters under BERT's names) → the same with what only this family has made part of others.
        lost: What BERT's attention has no place for, for the log; empty where its layers are the same.
    """

    renames: Mapping[str, str] = field(default_factory=dict)
    layers: bool = True
    fold: Callable[[PretrainedConfig, dict[str, Tensor]], dict[str, Tensor]] = lambda config, weights: weights
    lost: str = ""


class Factors(NamedTuple):
    """Where a masked-LM model with embeddings of their own width E leaves that width, and where it returns to it.

    Attributes:
        projection: The `nn.Linear` from the embeddings [..., E] to the first layer [..., H], which some models lack
            where E = H.
        dense: The head's `nn.Linear` from [..., H] to [..., E].
        norm: The head's norm after it, over E.
    """

    projection: str
    dense: str
    norm: str


@dataclass(frozen=True)
class Family:
    """One family, by `config.model_type`.

    Paths are dotted module names in its `...ForMaskedLM` model; the encoder's is one name, and a bare encoder has the
    paths after it. Everything goes through the model's own modules, so that hooks (ZeRO-3's gathering among them)
    fire as they would in the model's forward.

    Attributes:
        name: The family's `config.model_type`.
        title: What people call it.
        encoder: The module that returns `last_hidden_state` from input_ids and attention_mask.
        layers: The encoder's layers. Where layers share weights, their groups, one entry for each.
        within_group: Within a group of layers that share weights, the layer.
        factors: Where embeddings of their own width become as wide as the layers, and back; None where a model has one
            width.
        decoder: The vocabulary `nn.Linear`.
        mlm_transform: (model, hidden [..., H]) → [..., E], the head before the decoder.
        names: The config's names.
        as_bert: How its weights become those of a BERT, for students of another class.
        student: The family of its students if no other is asked for, or None for its own.
        ffn: Within a layer, the feed-forward's inner linear and the activation after it; None where the activation is
            not of all that the linear returns, as in gated layers.
        outputs: Within a layer, the linears that read the attention's heads, side by side, and the feed-forward's
            activation; None where heads and columns cannot be taken out of a layer one by one.
        output_norms: Within a layer, the norms that read what these linears add to the hidden states.
        projections: Within a layer, the modules whose outputs [..., H] are queries, keys and values, the heads side
            by side.
        split_projections: Where one module, which `projections` then names three times, computes all three: (encoder,
            layer, its output) → (queries, keys, values), each [B, L, H].
        fused: The modules of a layer that compute several quantities, whose rows follow each other in one weight, and
            how many: a narrower student takes the first rows of each.
        layer_inputs: (encoder, layer, hidden [B, L, H]) → the arguments with which the encoder calls a layer, beside
            hidden states and mask.
        final_norm: Within the encoder, the norm after the last layer, where there is one.
        absent_in_first: Within a layer, a norm that the first layer does not have.
        first_position: The position of the first token, from the config.
        eps: The LayerNorm's eps where the config cannot state it, else None.
        sinusoidal: The config's key that makes positions sinusoidal, if there is one.
        attention: The attention of transformers that the family is run with.
        mask: What attention mask its encoder takes: "bool", [B, 1, L, L], true where a query may see a key; "float",
            the same with what is added to a score; "by_type", a dict of "bool" masks by the layer's type,
            "full_attention" or "sliding_attention"; or "tokens", [B, L], true on real tokens, with which the documents
            of a packed sequence cannot be kept apart.
        recomputes: Whether transformers can compute its layers again in the backward pass, to save memory.
        has_pooler: Whether the bare encoder has a pooling layer that a masked-LM model lacks.
        has_positions: Whether a model of a config has position embeddings, which a student can freeze.
        scores_positions: Whether attention scores have terms of positions besides query · key, so that a loss between
            products of queries and keys would compare something else than attention.
        rotary: Whether positions turn pairs of neighboring dimensions of the queries and keys that `split_projections`
            returns.
        layers_stand_alone: Whether a layer computes from hidden states and a mask alone.
        position_rows: From the config, with how many vectors of positions each token is multiplied in each layer.
        standardize: Brings the config of a folder into the form that the paths are for, in place; ValueError where that
            cannot be.
        narrow: (student's config, teacher's config): adapts, in place, the sizes beyond those of `Dims` to the
            student's width.
        head_renames: (config.json's content, names in the files) → patterns of names of the masked-LM head's weights in
            the files, and what the model calls them.
        head_note: What to know where a checkpoint of the family has no masked-LM head, for errors.
    """

    name: str
    title: str
    encoder: str
    layers: str
    decoder: str
    mlm_transform: Callable[[Any, Tensor], Tensor]
    names: ConfigNames = ConfigNames()
    as_bert: AsBert = AsBert()
    student: str | None = None
    within_group: str | None = None
    factors: Factors | None = None
    ffn: tuple[str, str] | None = ("intermediate.dense", "intermediate.intermediate_act_fn")
    outputs: tuple[str, str] | None = ("attention.output.dense", "output.dense")
    output_norms: tuple[str, str] = ("attention.output.LayerNorm", "output.LayerNorm")
    projections: tuple[str, str, str] = ("attention.self.query", "attention.self.key", "attention.self.value")
    split_projections: Callable[[Any, Any, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
    fused: Mapping[str, int] = field(default_factory=dict)
    layer_inputs: Callable[[Any, Any, Tensor], dict[str, Any]] = lambda encoder, layer, hidden: {}
    final_norm: str | None = None
    absent_in_first: str | None = None
    first_position: Callable[[Any], int] = lambda config: 0
    eps: float | None = None
    sinusoidal: str | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"
    mask: Literal["bool", "float", "by_type", "tokens"] = "bool"
    recomputes: bool = True
    has_pooler: bool = True
    has_positions: Callable[[Any], bool] = lambda config: True
    scores_positions: bool = False
    rotary: bool = False
    layers_stand_alone: bool = True
    position_rows: Callable[[Any], int] = lambda config: 0
    standardize: Callable[[Any], None] = lambda config: None
    narrow: Callable[[Any, Any], None] = lambda student, teacher: None
    head_renames: Callable[[Mapping[str, Any], Sequence[str]], dict[str, str]] = lambda config, names: {}
    head_note: str = ""

    def embedding_width(self, config: Any) -> int:
        """Return the width of the embeddings, which is that of the decoder's input."""
        return getattr(config, self.names.embedding or self.names.width)

    def set_dropout(self, config: Any, dropout: float, heads: bool = False) -> None:
        """Set the dropout of hidden states and attention in `config`; with heads, that of a task's head as well."""
        for key in (*self.names.dropouts, *(self.names.head_dropouts if heads else ())):
            setattr(config, key, dropout)

    def decoder_parent_and_name(self, model: PreTrainedModel) -> tuple[nn.Module, str]:
        """Return the module that owns the vocabulary projection, and the projection's attribute name there."""
        parent, _, name = self.decoder.rpartition(".")
        return model.get_submodule(parent), name

    def has_head(self, model: PreTrainedModel) -> bool:
        """Return whether a model has a masked-LM head. A bare encoder has none, nor has one with the head of a task."""
        return hasattr(model, self.decoder.partition(".")[0])

    def prefix(self, model: PreTrainedModel) -> str:
        """Return what the names of the encoder's parameters in a model begin with: nothing for a bare encoder."""
        return f"{self.encoder}." if hasattr(model, self.encoder) else ""

    def get_encoder(self, model: PreTrainedModel) -> Any:
        """Return the encoder of a model with a head; a bare encoder itself."""
        return getattr(model, self.encoder, model)

    @property
    def layers_path(self) -> str:
        """The path, within the encoder, of the nn.ModuleList of its layers or groups of layers."""
        return self.layers.removeprefix(f"{self.encoder}.")

    def get_layers(self, model: PreTrainedModel) -> Any:
        """Return the nn.ModuleList of the encoder's layers, those that share weights once."""
        layers = self.get_encoder(model).get_submodule(self.layers_path)
        if self.within_group is None:
            return layers
        from torch import nn

        return nn.ModuleList(group.get_submodule(self.within_group) for group in layers)

    def count_layers(self, model: PreTrainedModel) -> int:
        """Return how many layers run, those that share weights each time."""
        return self.dims(model.config).depth if self.names.groups else len(self.get_layers(model))

    def layer_places(self, config: Any) -> list[int]:
        """Return for each layer of a model of this config its entry in `get_layers`: several where they share weights.

        Consecutive layers are a group. Source: transformers' AlbertTransformer.
        """
        depth = self.dims(config).depth
        groups = getattr(config, self.names.groups) if self.names.groups else depth
        return [int(layer / (depth / groups)) for layer in range(depth)]

    def get_final_norm(self, model: PreTrainedModel) -> nn.Module | None:
        """Return the encoder's norm after the last layer, or None."""
        return self.get_encoder(model).get_submodule(self.final_norm) if self.final_norm else None

    def get_decoder(self, model: PreTrainedModel) -> Any:
        """Return the vocabulary projection of a masked-LM model."""
        return model.get_submodule(self.decoder)

    def positions(self, config: Any) -> int:
        """Return how many tokens a sequence may have."""
        return config.max_position_embeddings - self.first_position(config)

    def windows(self, config: Any) -> list[int | None]:
        """Return for each layer how far a token sees to either side; None for a layer in which it sees all others."""
        if self.mask != "by_type":
            return [None] * self.dims(config).depth
        return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]

    def dims(self, config: Any) -> Dims:
        """Return the sizes that a config states."""
        return Dims(*(getattr(config, name) for name in self.names.dims))
