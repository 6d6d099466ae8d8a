"""The student: a smaller encoder of its teacher's family (DistilBERT for BERT), initialized from the teacher's weights.

Source: Sanh et al. 2019, section 2. The choice of layers and the copied MLM transform are those of
the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.models.copying import (
    check_tied,
    copy_from_teacher,
    tell_of_another_class,
    warn_of_eps,
    warn_of_first_layer,
)
from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.families.family import Family
from ds_distill.models.families.students import (
    copies_layers,
    copies_positions,
    get_student_class,
)
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.layer_shapes import is_pruned, layer_shapes, set_layer_shapes
from ds_distill.models.loading import load_encoder, load_masked_lm, new_model
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
    family: str | None = None,
    dropout: float = 0.1,
    seed: int = 0,
    freeze_positions: bool = False,
    from_: str | None = None,
    head: bool = True,
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
        family: The student's family, by default the usual one of the teacher's students. A student of another class
            than its teacher's starts from what both have; the rest of it is new.
        dropout: The hidden and the attention dropout.
        seed: The seed of a random start. The global generators are left alone.
        freeze_positions: Freeze the position embeddings. The authors' config asks for sinusoidal
            and therefore frozen positions, which BERT's then overwrite, so their positions were
            never trained. With a random start, frozen positions are sinusoidal; only DistilBERT has
            these. Rotary positions are no embeddings, so there is nothing to freeze.
        from_: The folder or name of a model that the student is to be a copy of. init_layers, num_layers, hidden_size,
            intermediate_size and family are then without meaning.

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
        family=family,
        dropout=dropout,
        freeze_positions=freeze_positions,
        from_=from_,
    )
    if starts_from_teacher := from_ is None and init_layers != "random":
        if head:
            check_tied(teacher_model)
    if layer_map is not None:
        warn_of_eps(teacher_model, get_family_by_type(config.model_type))
        warn_of_first_layer(get_family_by_type(config.model_type), layer_map)
    if from_ is not None:
        student = load_start(find_start(from_), dropout=dropout, head=head)
    else:
        student = _new_model(config, seed, head)
    if starts_from_teacher:
        new = copy_from_teacher(teacher_model, student, layer_map)
        if get_family(teacher_model) is not get_family(student):
            tell_of_another_class(teacher_model, student, layer_map, new)
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
    family: str | None = None,
    dropout: float = 0.1,
    freeze_positions: bool = False,
    from_: str | None = None,
) -> tuple[list[int] | None, PretrainedConfig]:
    """Return (layer map, config) of the student that `build_student` makes of a teacher of this config.

    The layer map is that of `resolve_layer_map`; None where the student starts from another model, or is of a class
    whose layers are not its teacher's.

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
    dims, student_class = teacher_family.dims(teacher), get_student_class(teacher_family, family)
    student = student_class.family if student_class else teacher_family
    random, has_layers = init_layers == "random", student_class is None or copies_layers(teacher_family, student)
    if not has_layers and init_layers == "every_other":
        init_layers = "random"
    layer_map = resolve_layer_map(init_layers, dims.depth, num_layers)
    if layer_map is not None and not has_layers:
        raise UserError(
            f"student.init_layers = {layer_map}: the layers of a {teacher_family.name} cannot become those of a "
            f"{student.name}; leave it out, and the student starts from the word embeddings alone"
        )
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
    if inner < 1 or (has_layers and inner > dims.feed_forward):
        most = f"from 1 to the teacher's {dims.feed_forward}" if has_layers else "of 1 or more"
        raise UserError(f"student.intermediate_size = {inner}: give a whole number {most}")
    takes_positions = not random and (student_class is None or copies_positions(teacher_family, teacher))
    if freeze_positions:
        _check_positions_exist(student, teacher)
        if not takes_positions and not student.sinusoidal:
            reason = "student.init_layers = random" if random else f"a {teacher_family.name} that has none to take over"
            raise UserError(
                f"student.freeze_positions with {reason}: frozen random positions carry no information; "
                + ("start from the teacher's layers" if random else "leave it out")
            )
    config = student_class.make_config(teacher_family, teacher) if student_class else _without_task(teacher)
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
    if student.names.embedding:
        setattr(config, student.names.embedding, student.embedding_width(config) * hidden // dims.width)
    for key in student.names.per_layer:
        entries = getattr(config if student_class else teacher, key)
        layers = range(depth) if layer_map is None else layer_map
        setattr(config, key, [entries[layer % len(entries)] for layer in layers])
    _set_shapes(config, teacher, layer_map, narrower != dims._replace(depth=depth))
    student.set_dropout(config, dropout)
    config.tie_word_embeddings = True
    if student.sinusoidal:
        setattr(config, student.sinusoidal, freeze_positions and not takes_positions)
    return layer_map, config


def _set_shapes(
    config: PretrainedConfig, teacher: PretrainedConfig, layer_map: list[int] | None, narrower: bool
) -> None:
    """Give a student of a pruned teacher, in place, the shapes of the layers that it starts from.

    With a random start its layers are whole.

    Raises:
        UserError: The student is narrower than such a teacher.
    """
    set_layer_shapes(config, [])
    if not is_pruned(teacher) or layer_map is None:
        return
    if narrower:
        raise UserError(
            "student.hidden_size and student.intermediate_size: the teacher's layers were pruned to widths of their "
            "own, which the student's layers start with; leave both out, or give student.init_layers = random"
        )
    shapes = layer_shapes(teacher)
    set_layer_shapes(config, [shapes[layer] for layer in layer_map])


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


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters.

    Tied parameters count once, frozen ones count too, and where ZeRO-3 holds a part the whole
    parameter counts.
    """
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
