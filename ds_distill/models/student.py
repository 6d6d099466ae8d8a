"""The student: a smaller encoder of its teacher's family (DistilBERT for BERT), initialized from the teacher's weights.

Source: Sanh et al. 2019, section 2. The choice of layers and the copied MLM transform are those of
the authors' code.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.families.family import Family
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.intermediates import run_encoder
from ds_distill.models.loading import load_encoder, load_masked_lm, new_model
from ds_distill.models.student_shape import add_identity, factorize, family_of_shape, set_shape
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


def resolve_layer_map(
    spec: str | Sequence[int], teacher_layers: int, student_layers: int | None = None
) -> list[int] | None:
    """Return the teacher layer that each student layer starts from, or None for a random start.

    Args:
        spec: "every_other" (evenly spaced, first and last included; one layer: the first), "random",
            or a list of teacher layers. For 12 → 6 layers "every_other" gives [0, 2, 4, 7, 9, 11].
        teacher_layers: The teacher's depth.
        student_layers: The student's depth. By default it is half the teacher's, or the list's
            length.

    Raises:
        UserError: The layers and depths do not fit together.
    """
    if student_layers is not None and (not _is_int(student_layers) or student_layers < 1):
        raise UserError(f"student.num_layers = {student_layers!r}: give a whole number, 1 or more")
    if isinstance(spec, str):
        if spec == "random":
            return None
        if spec != "every_other":
            raise UserError(
                f"student.init_layers = {spec!r}: give every_other, random, or a list of the teacher's layers"
            )
        depth = default_depth(teacher_layers) if student_layers is None else student_layers
        if depth > teacher_layers:
            raise UserError(
                f"student.num_layers = {depth}: the teacher has {teacher_layers} layers to copy; "
                f"give 1 to {teacher_layers}"
            )
        return _evenly_spaced(teacher_layers, depth)
    layers = list(spec)
    if not layers:
        raise UserError("student.init_layers = []: name at least one of the teacher's layers")
    for index, layer in enumerate(layers):
        if not _is_int(layer) or not 0 <= layer < teacher_layers:
            raise UserError(
                f"student.init_layers[{index}] = {layer!r}: the teacher has {teacher_layers} layers, "
                f"0 to {teacher_layers - 1}"
            )
    if student_layers is not None and student_layers != len(layers):
        raise UserError(
            f"student.num_layers = {student_layers}: student.init_layers names {len(layers)}; "
            "leave student.num_layers out, or make them agree"
        )
    return layers


def resolve_layers(
    config: PretrainedConfig, spec: str | Sequence[int], student_layers: int | None = None
) -> list[int] | None:
    """Return what `resolve_layer_map` returns for a teacher of this config."""
    return resolve_layer_map(spec, get_family_by_type(config.model_type).dims(config).depth, student_layers)


def default_depth(teacher_layers: int) -> int:
    """Return half the teacher's depth, at least 1."""
    return max(1, teacher_layers // 2)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _evenly_spaced(teacher_layers: int, depth: int) -> list[int]:
    if depth == 1:
        return [0]  # the layer that fits the copied embeddings
    gaps, last = depth - 1, teacher_layers - 1
    # This is i · last / gaps in whole numbers, rounded to the nearest, halves down. Steps are ≥ 1,
    # so no layer occurs twice.
    return [-((gaps - 2 * i * last) // (2 * gaps)) for i in range(depth)]


def build_student(
    teacher_model: PreTrainedModel,
    *,
    init_layers: str | Sequence[int] = "every_other",
    num_layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    embedding_size: int | None = None,
    num_hidden_groups: int | None = None,
    family: str | None = None,
    dropout: float = 0.1,
    seed: int = 0,
    freeze_positions: bool = False,
    from_: str | None = None,
    head: bool = True,
    token_counts: Tensor | None = None,
    sample: Tensor | None = None,
) -> PreTrainedModel:
    """Build a student in fp32, on the CPU, in train mode: a masked-LM model, or a bare encoder.

    Args:
        teacher_model: A teacher of any float dtype, on any device. It is left untouched. Where it has no
            masked-LM head, the student's is a new one.
        init_layers: As `spec` in `resolve_layer_map`.
        num_layers: As `student_layers` in `resolve_layer_map`.
        hidden_size: The student's width, by default the teacher's. A smaller one keeps whole attention
            heads and starts from the first rows and columns of the teacher's weights; where one weight computes
            several quantities, from the first rows of each.
        intermediate_size: The width of its feed-forward layers, by default the teacher's, reduced as the width is. A
            smaller one starts from the first columns of the teacher's.
        embedding_size: The width of its embeddings, by default the teacher's, reduced as the width is. A smaller one
            starts from the largest principal components of the teacher's, see `models.factorized`.
        num_hidden_groups: The number of groups of consecutive layers that share their weights; by default each layer
            has its own, or as many groups as the teacher's have. A group starts from the mean of its layers.
        family: The student's family, by default the usual one of the teacher's students, or the one that has such
            embeddings or shares layers.
        dropout: The hidden and the attention dropout.
        seed: The seed of a random start. The global generators are left alone.
        freeze_positions: Freeze the position embeddings. The authors' config asks for sinusoidal
            and therefore frozen positions, which BERT's then overwrite, so their positions were
            never trained. With a random start, frozen positions are sinusoidal; only DistilBERT has
            these. Rotary positions are no embeddings, so there is nothing to freeze.
        from_: The folder or name of a model that the student is to be a copy of. init_layers, num_layers, hidden_size,
            intermediate_size, embedding_size, num_hidden_groups and family are then without meaning.
        head: Whether it has a masked-LM head.
        token_counts: How often text has each token, [V] or shorter, for `embedding_size`; None for equally often.
        sample: Ids of masked text, int64 [B, L], to fit the head of an `embedding_size` to what the teacher's makes of
            it; None for no fit.

    Raises:
        UserError: The layer map, a width, the family or the dropout is unfit, the teacher's decoder is not tied, the
            model `from_` is not complete or has another vocabulary, or there are no positions to freeze.

    A warning is logged where the teacher has a LayerNorm eps that DistilBERT cannot have, and where the first layer
    lacks a norm that a layer between which and the teacher's it is copied does not.
    """
    layer_map, config = plan_student(
        teacher_model.config,
        init_layers=init_layers,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        embedding_size=embedding_size,
        num_hidden_groups=num_hidden_groups,
        family=family,
        dropout=dropout,
        freeze_positions=freeze_positions,
        from_=from_,
    )
    if layer_map is not None:  # a random start copies nothing, so nothing has to fit
        if head:
            check_tied(teacher_model)
        _warn_of_eps(teacher_model, get_family_by_type(config.model_type))
        _warn_of_first_layer(get_family_by_type(config.model_type), layer_map)
    if from_ is not None:
        student = load_start(find_start(from_), dropout=dropout, head=head)
    else:
        student = _new_model(config, seed, head)
    if layer_map is not None:
        copy_from_teacher(teacher_model, student, layer_map, embedding_size, token_counts, sample)
    if freeze_positions:
        for name, parameter in student.named_parameters():
            if name.endswith("position_embeddings.weight"):
                parameter.requires_grad_(False)
    return student.train()


def load_start(
    start: ModelFolder, *, head: bool, dropout: float | None = None, hollow: bool = False
) -> PreTrainedModel:
    """Return the model that a student is to be a copy of, with its masked-LM head or without.

    Args:
        start: The model's folder.
        head: Whether the student has a masked-LM head.
        dropout: As in `load_masked_lm`.
        hollow: As in `load_masked_lm`.

    Raises:
        UserError: The model is not complete, or lacks the head.
    """
    if head:
        return load_masked_lm(start, dropout=dropout, hollow=hollow)
    return load_encoder(start, dropout=dropout, hollow=hollow, bare=True)


def _new_model(config: PretrainedConfig, seed: int, head: bool) -> PreTrainedModel:
    """Return a model with random weights in fp32, on the CPU."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would seed the accelerators too, which fork_rng(devices=[]) does not
        # restore
        torch.random.default_generator.manual_seed(seed)
        return new_model(config, head=head).float()


def plan_student(
    teacher: PretrainedConfig,
    *,
    init_layers: str | Sequence[int] = "every_other",
    num_layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    embedding_size: int | None = None,
    num_hidden_groups: int | None = None,
    family: str | None = None,
    dropout: float = 0.1,
    freeze_positions: bool = False,
    from_: str | None = None,
) -> tuple[list[int] | None, PretrainedConfig]:
    """Return (layer map, config) of the student that `build_student` makes of a teacher of this config.

    The layer map is that of `resolve_layer_map`; None where the student starts from another model.

    Raises:
        UserError: The layer map, a width, the family or the dropout is unfit.
    """
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"training.dropout = {dropout}: give a probability, 0 or more and below 1")
    if from_ is not None:
        config = plan_copy(find_start(from_), teacher, dropout)
        if freeze_positions:
            _check_positions_exist(get_family_by_type(config.model_type), config)
        return None, config
    teacher_family = get_family_by_type(teacher.model_type)
    if family is None:
        family = family_of_shape(teacher_family, embedding_size, num_hidden_groups)
    dims, student_class = teacher_family.dims(teacher), teacher_family.student_class(family)
    layer_map = resolve_layer_map(init_layers, dims.depth, num_layers)
    if layer_map is not None:
        depth = len(layer_map)
    else:
        depth = default_depth(dims.depth) if num_layers is None else num_layers
    hidden, head = dims.width if hidden_size is None else hidden_size, dims.width // dims.heads
    if not head <= hidden <= dims.width or hidden % head:
        raise UserError(
            f"student.hidden_size = {hidden}: give a multiple of the teacher's head size {head}, "
            f"at most its width {dims.width}"
        )
    inner = dims.feed_forward * hidden // dims.width if intermediate_size is None else intermediate_size
    if not 1 <= inner <= dims.feed_forward:
        raise UserError(
            f"student.intermediate_size = {inner}: give a whole number from 1 to the teacher's {dims.feed_forward}"
        )
    student = get_family_by_type(student_class.name) if student_class else teacher_family
    if freeze_positions:
        _check_positions_exist(student, teacher)
    if freeze_positions and layer_map is None and not student.sinusoidal:
        raise UserError(
            "student.freeze_positions with student.init_layers = random: frozen random positions carry no information; "
            "start from the teacher's layers"
        )
    config = student_class.make_config(teacher) if student_class else _without_task(teacher)
    narrower = dims._replace(
        depth=depth,
        heads=dims.heads * hidden // dims.width,
        width=hidden,
        feed_forward=inner,
    )
    for key, value in zip(student.names.dims, narrower, strict=True):
        setattr(config, key, value)
    if hidden != dims.width:
        student.narrow(config, teacher)
    set_shape(config, student, teacher_family, hidden / dims.width, embedding_size, num_hidden_groups)
    for key in student.names.per_layer:
        entries = getattr(teacher, key)
        layers = range(depth) if layer_map is None else layer_map
        setattr(config, key, [entries[layer % len(entries)] for layer in layers])
    student.set_dropout(config, dropout)
    config.tie_word_embeddings = True
    if student.sinusoidal:
        setattr(config, student.sinusoidal, freeze_positions and layer_map is None)
    return layer_map, config


def _check_positions_exist(student: Family, config: PretrainedConfig) -> None:
    """Raise UserError where a student of this family and config has no position embeddings that could be frozen."""
    if not student.has_positions(config):
        raise UserError(
            f"student.freeze_positions = true: this {student.name} has no position embeddings, so there is nothing to "
            "freeze; leave it out"
        )


def find_start(name: str) -> ModelFolder:
    """Return the folder of the model that `student.from` names; UserError where there is none."""
    return find_model_folder(name, "student.from =")


def plan_copy(start: Any, teacher: PretrainedConfig, dropout: float) -> PretrainedConfig:
    """Return the config of a student that is a copy of another model.

    Args:
        start: The model, with a config and a title.
        teacher: The config of its teacher.
        dropout: The student's dropout.

    Raises:
        UserError: The models differ in the size of their vocabulary.
    """
    config = _without_task(start.config)
    if config.vocab_size != teacher.vocab_size:
        raise UserError(
            f"{start.title} has a vocabulary of {config.vocab_size} tokens, its teacher one of {teacher.vocab_size}; "
            "give a model with the teacher's tokenizer"
        )
    get_family_by_type(config.model_type).set_dropout(config, dropout)
    return config


def _without_task(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy of a config without what a fine-tuning has put there; a student has no head for that task."""
    config = copy.deepcopy(config)
    config.num_labels, config.problem_type = 2, None  # transformers' own; this resets the names of the labels
    for key in ("finetuning_task", "finetuning_length"):
        vars(config).pop(key, None)
    return config


def check_tied(teacher: PreTrainedModel) -> None:
    """Raise UserError where a teacher's decoder is not its word embeddings.

    A student that starts from them has one matrix for both.
    """
    family = get_family(teacher)
    if not family.has_head(teacher):
        return
    decoder, words = family.get_decoder(teacher).weight, cast(nn.Embedding, teacher.get_input_embeddings()).weight
    if decoder is not words and not torch.equal(decoder, words):
        raise UserError(
            "teacher: its decoder is not tied to its word embeddings, but the student's is; "
            "give a teacher with tied embeddings, or student.init_layers = random"
        )


def _warn_of_eps(teacher: PreTrainedModel, student: Family) -> None:
    """Warn where a student of this family cannot have its teacher's LayerNorm eps."""
    family = get_family(teacher)
    eps = family.eps or getattr(teacher.config, family.names.eps)
    if student.eps and eps != student.eps:
        log(
            f"warning: the teacher's layer_norm_eps is {eps:g}, {student.name}'s is fixed at {student.eps:g}: "
            "the student starts slightly different from its teacher"
        )


def _warn_of_first_layer(student: Family, layer_map: list[int]) -> None:
    """Warn where a norm that only the first layer lacks is not copied, because that layer moves or is joined."""
    new = [str(layer) for layer, source in enumerate(layer_map) if layer and not source]
    if not student.absent_in_first or (layer_map[0] == 0 and not new):
        return
    dropped = f"that of the teacher's layer {layer_map[0]} is dropped" if layer_map[0] else ""
    added = f"in student layer {', '.join(new)} it starts with weights of 1" if new else ""
    log(
        f"warning: student.init_layers = {layer_map}: the first layer of a {student.name} has no "
        f"{student.absent_in_first}: {' and '.join(filter(None, (dropped, added)))}, so the student starts slightly "
        "different from the teacher's layers; a list in which 0 comes first, and only there, avoids it"
    )


@torch.no_grad()
def copy_from_teacher(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layer_map: list[int],
    embedding_size: int | None = None,
    token_counts: Tensor | None = None,
    sample: Tensor | None = None,
) -> None:
    """Copy the teacher's parameters into the student's, by name.

    Student layer i gets those of teacher layer `layer_map[i]`. A narrower student takes the first rows
    and columns, of a weight in `Family.fused` those of each of its parts. A student of another class translates its
    names, see StudentClass. Where only the student has a masked-LM head, the head stays as it is, but for a decoder
    that is tied to its word embeddings. A norm that only the teacher's first layer lacks stays as it is too. Layers
    that share weights get the mean of those of their teacher layers.

    Args:
        teacher: The teacher.
        student: The student, in place.
        layer_map: For each student layer the teacher's.
        embedding_size: The width that the student was asked to have of its embeddings, which are then factorized
            instead of cut; None for neither.
        token_counts: As in `principal_isometry`.
        sample: As in `build_student`.
    """
    family, student_family = get_family(teacher), get_family(student)
    student_class = family.student_class(student_family.name)
    student_layers = re.compile(rf"{re.escape(student_family.layers)}\.(\d+)\.")
    places, teacher_places = student_family.layer_places(student.config), family.layer_places(teacher.config)
    sources = [
        dict.fromkeys(teacher_places[layer_map[layer]] for layer, own in enumerate(places) if own == place)
        for place in range(1 + max(places))
    ]
    # names are those of a masked-LM model, and a tied parameter has two
    before = "" if family.prefix(teacher) else f"{family.encoder}."
    source: dict[str, Tensor] = {
        f"{before}{name}": parameter for name, parameter in teacher.named_parameters(remove_duplicate=False)
    }
    source = student_class.fold(teacher.config, source) if student_class else source

    def counterpart(name: str) -> str:
        for part, other in student_class.renames.items() if student_class else ():
            name = name.replace(part, other)
        return name

    if student_family.factors:
        width = family.embedding_width(teacher.config)
        add_identity(source, counterpart(student_family.factors.projection), width)
        if embedding_size is not None and embedding_size < width:
            read = None if sample is None or not family.has_head(teacher) else _run_head(teacher, sample)
            source |= factorize(source, student_family, counterpart, embedding_size, token_counts, read)
    before = "" if student_family.prefix(student) else f"{student_family.encoder}."
    new_head = student_family.has_head(student) and not family.has_head(teacher)
    for name, target in student.named_parameters(remove_duplicate=not new_head):
        if new_head and not name.startswith(f"{student_family.encoder}."):
            continue
        names = [f"{before}{name}"]
        if layer := student_layers.search(names[0]):
            start, end = names[0][: layer.start(1)], names[0][layer.end(1) :]
            names = [f"{start}{other}{end}" for other in sources[int(layer[1])]]
        names = [counterpart(name) for name in names]
        module = names[0].rpartition(".")[0]
        if names[0] not in source and family.absent_in_first and module.endswith(f".{family.absent_in_first}"):
            continue
        whole = source[names[0]] if len(names) == 1 else torch.stack([source[name].float() for name in names]).mean(0)
        parts = next((count for part, count in family.fused.items() if module.endswith(f".{part}")), 1)
        for own, other in zip(target.chunk(parts), whole.chunk(parts), strict=True):
            own.copy_(other[tuple(slice(size) for size in own.shape)])


def _run_head(teacher: PreTrainedModel, sample: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states [B · L, H] that a teacher's head reads, and [B · L, E], what its decoder does, fp32."""
    family = get_family(teacher)
    parts = []
    for ids in sample.split(16):
        hidden, _ = run_encoder(teacher, ids.to(teacher.device), None)
        parts.append([x.flatten(0, 1).float().cpu() for x in (hidden, family.mlm_transform(teacher, hidden))])
    hidden, output = (torch.cat(part) for part in zip(*parts, strict=True))
    return hidden, output


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters.

    Tied parameters count once, frozen ones count too, and where ZeRO-3 holds a part the whole
    parameter counts.
    """
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
