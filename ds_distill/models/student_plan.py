"""What a student is to be: the teacher layers that it starts from, its class and its sizes.

Source: Sanh et al. 2019, section 2. The choice of layers is that of the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

from ds_distill.models.families import get_family_by_type
from ds_distill.models.families.family import Dims, Family
from ds_distill.models.families.students import copies_layers, copies_positions, get_student_class
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.layer_shapes import is_pruned, layer_shapes, set_layer_shapes
from ds_distill.models.loading import new_model
from ds_distill.models.low_rank import set_rank
from ds_distill.models.student_shape import family_of_shape, set_shape
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError


def resolve_layer_map(
    spec: str | Sequence[int], teacher_layers: int, student_layers: int | None = None
) -> list[int] | None:
    """Return the teacher layer that each student layer starts from, or None for a random start.

    Args:
        spec: "every_other" (evenly spaced, first and last included; one layer: the first), "inner" (evenly
            spaced between the first and the last), "random", or a list of teacher layers. For 12 → 6 layers,
            "every_other" gives [0, 2, 4, 7, 9, 11], and "inner" [1, 3, 5, 6, 8, 10].
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
        if spec not in ("every_other", "inner"):
            raise UserError(
                f"student.init_layers = {spec!r}: give every_other, inner, random, or a list of the teacher's layers"
            )
        depth = default_depth(teacher_layers) if student_layers is None else student_layers
        if depth > teacher_layers:
            raise UserError(
                f"student.num_layers = {depth}: the teacher has {teacher_layers} layers to copy; "
                f"give 1 to {teacher_layers}"
            )
        if spec == "every_other":
            return _evenly_spaced(teacher_layers, depth)
        if depth > teacher_layers - 2:
            raise UserError(
                f"student.init_layers = inner: the teacher has {max(0, teacher_layers - 2)} layers between its first "
                f"and its last, too few for a student of {depth}; give every_other"
            )
        return [layer + 1 for layer in _evenly_spaced(teacher_layers - 2, depth)]
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


def plan_student(
    teacher: PretrainedConfig,
    *,
    init_layers: str | Sequence[int] = "every_other",
    num_layers: int | None = None,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    embedding_size: int | None = None,
    num_hidden_groups: int | None = None,
    linear_rank: int | None = None,
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
    # of a pruned teacher, no other setting leads to a class whose layers must be whole
    cause = f"student.family = {family}" if family else f"student.num_hidden_groups = {num_hidden_groups}"
    if family is None:
        family = family_of_shape(teacher_family, embedding_size, num_hidden_groups)
    dims, student_class = teacher_family.dims(teacher), get_student_class(teacher_family, family)
    student = student_class.family if student_class else teacher_family
    random, has_layers = init_layers == "random", student_class is None or copies_layers(teacher_family, student)
    if not has_layers and init_layers == "every_other":
        init_layers = "random"
    layer_map = resolve_layer_map(init_layers, dims.depth, num_layers)
    if layer_map is not None and not has_layers:
        raise UserError(
            f"student.init_layers = {layer_map}: the layers of {with_article(teacher_family.name)} cannot become those "
            f"of {with_article(student.name)}; leave it out, and the student starts from the word embeddings alone"
        )
    if layer_map is not None:
        depth = len(layer_map)
    else:
        depth = default_depth(dims.depth) if num_layers is None else num_layers
    hidden, head = dims.width if hidden_size is None else hidden_size, dims.width // dims.heads
    if num_attention_heads is not None:
        heads = num_attention_heads
        _check_heads(heads, hidden, dims, teacher_family, student)
    elif not head <= hidden <= dims.width or hidden % head:
        raise UserError(
            f"student.hidden_size = {hidden}: give a multiple of the teacher's head size {head}, "
            f"at most its width {dims.width}, or student.num_attention_heads as well"
        )
    else:
        heads = dims.heads * hidden // dims.width
    if student.rotary and head % 2:
        raise UserError(
            f"{cause}: the teacher's heads have {head} dimensions, but the rotary positions of "
            f"{with_article(student.name)} need an even number; choose another class"
        )
    inner = dims.feed_forward * hidden // dims.width if intermediate_size is None else intermediate_size
    if inner < 1 or (has_layers and inner > dims.feed_forward):
        most = f"from 1 to the teacher's {dims.feed_forward}" if has_layers else "of 1 or more"
        raise UserError(f"student.intermediate_size = {inner}: give a whole number {most}")
    config = student_class.make_config(teacher_family, teacher) if student_class else _without_task(teacher)
    sizes = dims._replace(depth=depth, heads=heads, width=hidden, feed_forward=inner)
    for key, value in zip(student.names.dims, sizes, strict=True):
        setattr(config, key, value)
    if hidden != dims.width:
        student.narrow(config, teacher)
    set_shape(config, student, teacher_family, hidden / dims.width, embedding_size, num_hidden_groups)
    for key in student.names.per_layer:
        entries = getattr(config if student_class else teacher, key)
        layers = range(depth) if layer_map is None else layer_map
        setattr(config, key, [entries[layer % len(entries)] for layer in layers])
    widths = {"hidden_size": (hidden, dims.width), "intermediate_size": (inner, dims.feed_forward)}
    narrower = next((f"student.{key} = {size}" for key, (size, whole) in widths.items() if size != whole), None)
    _set_shapes(config, student, teacher, layer_map, narrower, cause)
    student.set_dropout(config, dropout)
    config.tie_word_embeddings = True
    takes_positions = not random and (
        student_class is None or copies_positions(teacher_family, teacher, student, config)
    )
    if freeze_positions:
        _check_positions_exist(student, teacher)
        if not takes_positions and not student.sinusoidal:
            none = f"{with_article(teacher_family.name)} that has none to take over"
            reason = "student.init_layers = random" if random else none
            raise UserError(
                f"student.freeze_positions with {reason}: frozen random positions carry no information; "
                + ("start from the teacher's layers" if random else "leave it out")
            )
    if student.sinusoidal:
        setattr(config, student.sinusoidal, freeze_positions and not takes_positions)
    _set_linear_rank(config, linear_rank)
    return layer_map, config


def _check_heads(heads: int, hidden: int, dims: Dims, teacher: Family, student: Family) -> None:
    """Raise UserError where a student of a width cannot have as many heads, with dimensions of its teacher's heads."""
    given, size = f"student.num_attention_heads = {heads}", dims.width // dims.heads
    if student.outputs is None or teacher.outputs is None:
        family = student if student.outputs is None else teacher
        raise UserError(f"{given}: heads of {with_article(family.name)} cannot be cut one by one; leave it out")
    if not 1 <= heads <= dims.heads or not heads <= hidden <= min(dims.width, heads * size) or hidden % heads:
        raise UserError(
            f"{given}: give 1 to the teacher's {dims.heads} heads, and with student.hidden_size = {hidden} a number "
            f"that divides it into heads of at most the teacher's {size} dimensions"
        )


def _set_linear_rank(config: PretrainedConfig, rank: int | None) -> None:
    """State the rank of a student's linear layers in its config; UserError where it makes none of them smaller."""
    if rank is None:
        return
    if rank < 1:
        raise UserError(f"student.linear_rank = {rank}: give a whole number, 1 or more")
    set_rank(config, rank)
    try:
        with torch.device("meta"):  # nothing is allocated
            new_model(config, head=False)
    except UserError as error:
        raise UserError(f"student.{error}") from error


def _set_shapes(
    config: PretrainedConfig,
    student: Family,
    teacher: PretrainedConfig,
    layer_map: list[int] | None,
    narrower: str | None,
    cause: str,
) -> None:
    """Give a student of a pruned teacher, in place, the shapes of the layers that it starts from.

    With a random start its layers are whole.

    Args:
        config: The student's config.
        student: Its family.
        teacher: Its teacher's config.
        layer_map: The teacher layer that each of its layers starts from, or None.
        narrower: The setting that makes its layers narrower than its teacher's were before the pruning, or None.
        cause: The setting that made it a student of its family, for errors.

    Raises:
        UserError: The student is narrower than such a teacher, or its layers cannot have shapes of their own.
    """
    set_layer_shapes(config, [])
    if not is_pruned(teacher) or layer_map is None:
        return
    if student.outputs is None:
        raise UserError(
            f"{cause}: the teacher's layers were pruned to widths of their own, which those of "
            f"{with_article(student.name)} cannot have; leave it out, or set student.init_layers = random"
        )
    if narrower:
        raise UserError(
            f"{narrower}: the teacher's layers were pruned to widths of their own, which the student's layers start "
            "with; leave it out, or give student.init_layers = random"
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
        start: The model, with a config, a title and the rank of its linear layers.
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
    set_rank(config, start.linear_rank)
    return config


def _without_task(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy of a config without what a fine-tuning has put there; a student has no head for that task."""
    config = copy.deepcopy(config)
    config.num_labels, config.problem_type = 2, None  # transformers' own; this resets the names of the labels
    for key in ("finetuning_task", "finetuning_length"):
        vars(config).pop(key, None)
    return config
