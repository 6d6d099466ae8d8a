"""The student: a DistilBERT of any depth up to its teacher's, started from the teacher's weights.

Source: Sanh et al. 2019, section 2; the layer choice and the copied MLM transform are those of the authors' code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForMaskedLM, PreTrainedModel

from ds_distill.errors import UserError
from ds_distill.models.families import family_of

DISTILBERT_EPS = 1e-12  # written into transformers' DistilBERT, no config key changes it

# The student's modules within a block, and the teacher's that they are copied from.
_BLOCK_FROM = {
    "bert": {
        "attention.q_lin": "attention.self.query",
        "attention.k_lin": "attention.self.key",
        "attention.v_lin": "attention.self.value",
        "attention.out_lin": "attention.output.dense",
        "sa_layer_norm": "attention.output.LayerNorm",
        "ffn.lin1": "intermediate.dense",
        "ffn.lin2": "output.dense",
        "output_layer_norm": "output.LayerNorm",
    },
    "distilbert": {
        name: name
        for name in (
            "attention.q_lin",
            "attention.k_lin",
            "attention.v_lin",
            "attention.out_lin",
            "sa_layer_norm",
            "ffn.lin1",
            "ffn.lin2",
            "output_layer_norm",
        )
    },
}
_HEAD_FROM = {
    "bert": {"vocab_transform": "cls.predictions.transform.dense", "vocab_layer_norm": "cls.predictions.transform.LayerNorm"},
    "distilbert": {"vocab_transform": "vocab_transform", "vocab_layer_norm": "vocab_layer_norm"},
}


def resolve_layer_map(spec: str | Sequence[int], teacher_layers: int, student_layers: int | None = None) -> list[int] | None:
    """The teacher layer that each student layer starts from, or None for a random start.

    spec: "every_other" (evenly spaced, first and last included: 12 → 6 gives [0, 2, 4, 7, 9, 11]), "random", or a list of teacher layers.
    student_layers: the student's depth; by default half the teacher's, or the list's length.  Raises UserError for what does not fit.
    """
    if student_layers is not None and (not _is_int(student_layers) or student_layers < 1):
        raise UserError(f"student.num_layers = {student_layers!r}: give a whole number, 1 or more")
    if isinstance(spec, str):
        if spec == "random":
            return None
        if spec != "every_other":
            raise UserError(f"student.layers = {spec!r}: give every_other, random, or a list of the teacher's layers")
        depth = default_depth(teacher_layers) if student_layers is None else student_layers
        if depth > teacher_layers:
            raise UserError(f"student.num_layers = {depth}: the teacher has {teacher_layers} layers to copy; give 1 to {teacher_layers}")
        return _evenly_spaced(teacher_layers, depth)
    layers = list(spec)
    if not layers:
        raise UserError("student.layers = []: name at least one of the teacher's layers")
    for index, layer in enumerate(layers):
        if not _is_int(layer) or not 0 <= layer < teacher_layers:
            raise UserError(f"student.layers[{index}] = {layer!r}: the teacher has {teacher_layers} layers, 0 to {teacher_layers - 1}")
    if student_layers is not None and student_layers != len(layers):
        raise UserError(
            f"student.num_layers = {student_layers}: student.layers names {len(layers)}; leave num_layers out or make them agree"
        )
    return layers


def default_depth(teacher_layers: int) -> int:
    """Half the teacher's depth, at least 1."""
    return max(1, teacher_layers // 2)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _evenly_spaced(teacher_layers: int, depth: int) -> list[int]:
    if depth == 1:
        return [0]  # the layer that fits the copied embeddings
    gaps, last = depth - 1, teacher_layers - 1
    # i · last / gaps rounded to the nearest, halves down, in whole numbers: steps are ≥ 1, so no layer comes twice
    return [-((gaps - 2 * i * last) // (2 * gaps)) for i in range(depth)]


def build_student(
    teacher_model: PreTrainedModel,
    *,
    layers: str | Sequence[int] = "every_other",
    num_layers: int | None = None,
    dropout: float = 0.1,
    seed: int = 0,
    freeze_positions: bool = False,
) -> DistilBertForMaskedLM:
    """A student of the teacher's widths, fp32 on the CPU, in train mode; teacher of any float dtype and device, left untouched.

    layers, num_layers: as in `resolve_layer_map`.  dropout: hidden and attention.
    seed: of a random start; the global generators are left alone.
    freeze_positions: the authors' config asks for sinusoidal, therefore frozen, positions, which BERT's then overwrite: their positions
    never trained.  With a random start, frozen positions are sinusoidal.
    Raises UserError for an unfit layer map, dropout or an untied teacher decoder; warns of a LayerNorm eps that DistilBERT cannot have.
    """
    family, source = family_of(teacher_model), teacher_model.config
    teacher_layers = len(family.layers(teacher_model))
    layer_map = resolve_layer_map(layers, teacher_layers, num_layers)
    if layer_map is not None:
        depth = len(layer_map)
    else:
        depth = default_depth(teacher_layers) if num_layers is None else num_layers
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"student.dropout = {dropout}: give a probability, 0 or more and below 1")
    if layer_map is not None:  # a random start copies nothing, so nothing need fit
        _check_copyable(teacher_model)

    is_bert = family.name == "bert"
    config = DistilBertConfig(
        vocab_size=source.vocab_size,
        max_position_embeddings=source.max_position_embeddings,
        sinusoidal_pos_embds=freeze_positions and layer_map is None,
        n_layers=depth,
        n_heads=source.num_attention_heads,
        dim=source.hidden_size,
        hidden_dim=source.intermediate_size if is_bert else source.hidden_dim,
        dropout=dropout,
        attention_dropout=dropout,
        activation=source.hidden_act if is_bert else source.activation,
        initializer_range=source.initializer_range,
        pad_token_id=source.pad_token_id,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would seed the accelerators too, which fork_rng(devices=[]) does not restore
        torch.random.default_generator.manual_seed(seed)
        student = DistilBertForMaskedLM(config).float()
    if layer_map is not None:
        _copy_weights(teacher_model, student, layer_map)
    if freeze_positions:
        student.distilbert.embeddings.position_embeddings.weight.requires_grad_(False)
    return student.train()


def _check_copyable(teacher: PreTrainedModel) -> None:
    """Raises UserError for an untied decoder, warns of a LayerNorm eps other than DistilBERT's."""
    family = family_of(teacher)
    decoder, words = family.decoder(teacher).weight, family.embeddings(teacher).word_embeddings.weight
    if decoder is not words and not torch.equal(decoder, words):
        raise UserError(
            "teacher: its decoder is not tied to its word embeddings, DistilBERT's is; "
            "give a teacher with tied embeddings, or student.layers = random"
        )
    eps = getattr(teacher.config, "layer_norm_eps", DISTILBERT_EPS)
    if eps != DISTILBERT_EPS:
        warnings.warn(
            f"teacher: layer_norm_eps = {eps:g}, DistilBERT's is fixed at {DISTILBERT_EPS:g}: the student starts slightly off its teacher",
            stacklevel=3,
        )


@torch.no_grad()
def _copy_weights(teacher: PreTrainedModel, student: DistilBertForMaskedLM, layer_map: list[int]) -> None:
    family = family_of(teacher)
    theirs, ours = family.embeddings(teacher), student.distilbert.embeddings
    ours.word_embeddings.weight.copy_(theirs.word_embeddings.weight)  # the tied decoder shares it
    positions = theirs.position_embeddings.weight.float()
    if family.name == "bert":
        # DistilBERT has no token types; pretraining sees type 0 only, a constant vector that the positions can carry
        positions = positions + theirs.token_type_embeddings.weight[0].float()
    ours.position_embeddings.weight.copy_(positions)
    pairs: list[tuple[nn.Module, nn.Module]] = [(ours.LayerNorm, theirs.LayerNorm)]
    pairs += _named_pairs(student, teacher, _HEAD_FROM[family.name])
    for block, layer in zip(student.distilbert.transformer.layer, layer_map, strict=True):
        pairs += _named_pairs(block, family.layers(teacher)[layer], _BLOCK_FROM[family.name])
    for ours, theirs in pairs:
        ours.weight.copy_(theirs.weight)
        ours.bias.copy_(theirs.bias)
    if (bias := family.decoder(teacher).bias) is not None:
        student.vocab_projector.bias.copy_(bias)


def _named_pairs(student: nn.Module, teacher: nn.Module, names: dict[str, str]) -> Iterator[tuple[nn.Module, nn.Module]]:
    return ((student.get_submodule(ours), teacher.get_submodule(theirs)) for ours, theirs in names.items())


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones once, frozen ones too, whole ones where ZeRO-3 holds a part."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
