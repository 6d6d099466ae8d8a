"""Shapes of a student that its teacher does not have: embeddings of their own width, and layers that share weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig

from ds_distill.models.factorized import (
    Embeddings,
    Head,
    factorize_embeddings,
    factorize_head,
    principal_isometry,
)
from ds_distill.models.families.family import Family
from ds_distill.models.families.students import STUDENT_CLASSES, copies_layers
from ds_distill.utils.errors import UserError


def family_of_shape(teacher: Family, embedding_size: int | None, num_hidden_groups: int | None) -> str | None:
    """Return the family of a student of this teacher that has embeddings of their own width, or shares layers.

    It is None where neither is asked for, and where no such student can start from the teacher's layers.
    """
    if embedding_size is None and num_hidden_groups is None:
        return None
    for family in (teacher, *(student.family for student in STUDENT_CLASSES.values())):
        if not (family.names.groups if num_hidden_groups is not None else family.names.embedding):
            continue
        if family is teacher or copies_layers(teacher, family):
            return family.name
    return None


def set_shape(
    config: PretrainedConfig,
    student: Family,
    teacher: Family,
    share: float,
    embedding_size: int | None,
    num_hidden_groups: int | None,
) -> None:
    """Set, in a student's config, the width of its embeddings and the number of its groups of layers.

    Args:
        config: The student's config, with its depth and hidden size, and else its teacher's sizes.
        student: Its family.
        teacher: Its teacher's family.
        share: Its hidden size per that of its teacher, by which its embeddings shrink where their size is not given.
        embedding_size: As in `build_student`.
        num_hidden_groups: As in `build_student`.

    Raises:
        UserError: The family cannot have such a shape.
    """
    dims = student.dims(config)
    if student.names.embedding:
        widest = student.embedding_width(config)
        if embedding_size is not None:
            _check_embedding_size(embedding_size, widest, dims.width, share, student)
        setattr(config, student.names.embedding, embedding_size or round(widest * share))
    elif embedding_size is not None:
        raise _no_such_shape("embedding_size", embedding_size, teacher, student)
    if student.names.groups:
        groups = num_hidden_groups
        if groups is None:
            groups = min(dims.depth, getattr(config, student.names.groups)) if student is teacher else dims.depth
        if not 1 <= groups <= dims.depth:
            raise UserError(
                f"student.num_hidden_groups = {groups}: the student's {dims.depth} layers can be 1 to {dims.depth} "
                "groups; give one of these"
            )
        setattr(config, student.names.groups, groups)
    elif num_hidden_groups is not None:
        raise _no_such_shape("num_hidden_groups", num_hidden_groups, teacher, student)


def _no_such_shape(key: str, value: int, teacher: Family, student: Family) -> UserError:
    """Return the error about a student whose family cannot have the shape that the setting `key` asks for."""
    of_embeddings = key == "embedding_size"
    lack = "its embeddings have no width of their own" if of_embeddings else "its layers cannot share weights"
    able = family_of_shape(teacher, value if of_embeddings else None, None if of_embeddings else value)
    if able and student is not teacher:
        remedy = f"set student.family = {able}, or leave student.family out"
    elif able:
        remedy = f"leave student.family out, and the student is of the family {able}"
    else:
        able = "electra" if of_embeddings else "albert"
        remedy = f"set student.family = {able}, whose layers are then new, or leave student.{key} out"
    return UserError(f"student.{key} = {value}: the student's family is {student.name}, and {lack}; {remedy}")


def _check_embedding_size(size: int, widest: int, hidden: int, share: float, student: Family) -> None:
    """Raise UserError where a student of this family cannot have embeddings of this width.

    Args:
        size: The width that is asked for.
        widest: The width of the teacher's.
        hidden: The student's hidden size.
        share: The student's hidden size per that of the teacher.
        student: The student's family.
    """
    if not 2 <= size <= widest:
        raise UserError(
            f"student.embedding_size = {size}: give a whole number from 2 to the width of the teacher's embeddings, "
            f"{widest}"
        )
    # Only an ALBERT has a projection between equal widths, and only a teacher of these very widths needs none.
    needed = size < widest or share < 1
    if size == hidden and needed and not student.names.groups:
        raise UserError(
            f"student.embedding_size = {size}: is also the student's hidden size, and {student.name} has no projection "
            "between embeddings and layers of one width; give another size"
        )


def add_identity(source: dict[str, Tensor], weight: str, bias: str, width: int) -> None:
    """Give a teacher's parameters a projection of its embeddings that changes nothing, where it has none.

    Args:
        source: The parameters by name.
        weight: The name of the projection's weight.
        bias: The name of its bias.
        width: The width of the embeddings.
    """
    source.setdefault(weight, torch.eye(width))
    source.setdefault(bias, torch.zeros(width))


def factorize(
    source: Mapping[str, Tensor],
    student: Family,
    counterpart: Callable[[str], str],
    size: int,
    token_counts: Tensor | None,
    sample: tuple[Tensor, Tensor] | None,
) -> dict[str, Tensor]:
    """Return a teacher's embeddings and its head, if it has one, for embeddings of another width, by their names in it.

    Args:
        source: The teacher's parameters by name.
        student: The student's family.
        counterpart: A name in the student → the one in the teacher.
        size: The width.
        token_counts: As in `principal_isometry`.
        sample: Hidden states [N, H] that the teacher's head reads, and what it makes of them [N, D]; or None.
    """
    assert student.factors is not None  # a family has these where its config has such a width
    tables = [f"{student.encoder}.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    norm, projection = (
        [f"{module}.{kind}" for kind in ("weight", "bias")]
        for module in (f"{student.encoder}.embeddings.LayerNorm", student.factors.projection)
    )
    names = [counterpart(name) for name in (*tables, *norm, *projection)]
    width = source[names[0]].shape[1]
    # rotary positions have no table, and a norm may have no bias
    absent = {names[1]: torch.zeros(0, width), names[4]: torch.zeros(width)}
    words, positions, types, *others = ((absent | dict(source))[name] for name in names)
    isometry = principal_isometry((words, positions, types), size, token_counts)
    made = factorize_embeddings(Embeddings((words, positions, types), *others), isometry)
    factors = {name: x for name, x in zip(names, (*made.tables, *made[1:]), strict=True) if name in source}
    head = [
        counterpart(f"{module}.{kind}")
        for module in (student.factors.dense, student.factors.norm)
        for kind in ("weight", "bias")
    ]
    if head[0] in source:
        factors |= zip(
            head, factorize_head(Head(*(source[name] for name in head)), isometry, *(sample or ())), strict=True
        )
    return factors
