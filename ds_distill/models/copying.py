"""Copying a teacher's weights into its student, and what is said about those that do not fit."""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.models.families.family import Family
from ds_distill.models.families.students import get_student_class, rename, weights_as_bert
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


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


def warn_of_eps(teacher: PreTrainedModel, student: Family) -> None:
    """Warn where a student of this family cannot have its teacher's LayerNorm eps."""
    family = get_family(teacher)
    eps = family.eps or getattr(teacher.config, family.names.eps)
    if student.eps and eps != student.eps:
        log(
            f"warning: the teacher's layer_norm_eps is {eps:g}, {student.name}'s is fixed at {student.eps:g}: "
            "the student starts slightly different from its teacher"
        )


def warn_of_first_layer(student: Family, layer_map: list[int]) -> None:
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


def tell_of_another_class(
    teacher: PreTrainedModel, student: PreTrainedModel, layer_map: list[int] | None, new: list[str]
) -> None:
    """Log what a student of another class than its teacher's could not take over.

    Args:
        teacher: The teacher.
        student: The student.
        layer_map: The teacher layer that each student layer starts from; None where none does.
        new: The names of the parameters that were not copied, from `copy_from_teacher`.
    """
    family, student_family = get_family(teacher), get_family(student)
    words, layers = student.get_input_embeddings(), student_family.get_layers(student)
    of_layers, of_encoder = (set(map(id, part.parameters())) for part in (layers, student_family.get_encoder(student)))
    parts = dict[str, None]()
    for name in new:
        parameter = student.get_parameter(name)
        if id(parameter) in of_layers:
            parts["layers"] = None
        elif id(parameter) not in of_encoder:
            parts["masked-LM head"] = None
        elif parameter is cast(nn.Embedding, words).weight:
            parts["word embeddings"] = None
        elif name.endswith("position_embeddings.weight"):
            parts["position embeddings"] = None
    remarks = [f"new in it: {', '.join(parts)}"] if parts else []
    if family.as_bert.lost and layer_map is not None:
        remarks.append(f"it has no place for {family.as_bert.lost}")
    if remarks:
        log(f"student: a {student_family.name} of a {family.name}; {'; '.join(remarks)}")


@torch.no_grad()
def copy_from_teacher(teacher: PreTrainedModel, student: PreTrainedModel, layer_map: list[int] | None) -> list[str]:
    """Copy the teacher's parameters into the student's, by name; return the names of those that stay as they are.

    Student layer i gets those of teacher layer `layer_map[i]`; without a map, layers stay as they are. A narrower
    student takes the first rows and columns, of a weight in `Family.fused` those of each of its parts. A student of
    another class takes what both classes have, see models.families.students. Where only the student has a masked-LM
    head, the head stays as it is, but for a decoder that is tied to its word embeddings. A norm that only the teacher's
    first layer lacks stays as it is too.
    """
    family, student_family = get_family(teacher), get_family(student)
    student_class = get_student_class(family, student_family.name)
    layers = re.compile(rf"{re.escape(student_family.layers)}\.(\d+)\.")
    # names are those of a masked-LM model, and a tied parameter has two
    before = "" if family.prefix(teacher) else f"{family.encoder}."
    source: dict[str, Tensor] = {
        f"{before}{name}": parameter for name, parameter in teacher.named_parameters(remove_duplicate=False)
    }
    if student_class:
        source = student_class.fold(weights_as_bert(family, teacher.config, source))
    before = "" if student_family.prefix(student) else f"{student_family.encoder}."
    new_head = student_family.has_head(student) and not family.has_head(teacher)
    copied: set[int] = set()
    for own_name, target in student.named_parameters(remove_duplicate=False):
        name = f"{before}{own_name}"
        if new_head and not name.startswith(f"{student_family.encoder}."):
            continue
        if layer := layers.match(name):
            if layer_map is None:
                continue
            name = layers.sub(f"{student_family.layers}.{layer_map[int(layer[1])]}.", name)
        if student_class:
            name = rename(name, student_family.as_bert.renames)
        module = name.rpartition(".")[0]
        lacks_norm = bool(family.absent_in_first) and module.endswith(f".{family.absent_in_first}")
        if name not in source and (student_class or lacks_norm):
            continue
        parts = next((count for part, count in family.fused.items() if module.endswith(f".{part}")), 1)
        for own, other in zip(target.chunk(parts), source[name].chunk(parts), strict=True):
            own.copy_(other[tuple(slice(size) for size in own.shape)])
        copied.add(id(target))
    return [name for name, parameter in student.named_parameters() if id(parameter) not in copied]
