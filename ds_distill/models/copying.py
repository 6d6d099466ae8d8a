"""Copying a teacher's weights into its student, and what is said about those that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.models.families.family import Family
from ds_distill.models.families.students import copies_embeddings, get_student_class, rename, weights_as_bert
from ds_distill.models.intermediates import run_encoder
from ds_distill.models.student_shape import add_identity, factorize
from ds_distill.utils.articles import with_article
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
        f"warning: student.init_layers = {layer_map}: the first layer of {with_article(student.name)} has no "
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
        pair = f"{with_article(student_family.name)} of {with_article(family.name)}"
        log(f"student: {pair}; {'; '.join(remarks)}")


@torch.no_grad()
def copy_from_teacher(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layer_map: list[int] | None,
    embedding_size: int | None = None,
    token_counts: Tensor | None = None,
    sample: Sequence[Tensor] | None = None,
) -> list[str]:
    """Copy the teacher's parameters into the student's, by name; return the names of those that stay as they are.

    Student layer i gets those of teacher layer `layer_map[i]`, and layers that share weights the mean of those of their
    teacher layers; without a map, layers stay as they are. A narrower student takes the first rows and columns, of a
    weight in `Family.fused` those of each of its parts. A student of another class takes what both classes have, see
    models.families.students. Where only the student has a masked-LM head, the head stays as it is, but for a decoder
    that is tied to its word embeddings. A norm that only the teacher's first layer lacks stays as it is too.

    Args:
        teacher: The teacher.
        student: The student, in place.
        layer_map: For each student layer the teacher's, or None.
        embedding_size: The width that the student was asked to have of its embeddings, which are then factorized
            instead of cut; None for neither.
        token_counts: As in `principal_isometry`.
        sample: As in `build_student`, each int64 [B, L].
    """
    family, student_family = get_family(teacher), get_family(student)
    student_class = get_student_class(family, student_family.name)
    source = _parameters_of_layers(teacher)
    if student_class:
        embeddings = copies_embeddings(family, teacher.config, student_family, student.config)
        source = student_class.fold(weights_as_bert(family, teacher.config, source, embeddings))
    renames = student_family.as_bert.renames if student_class else {}

    def counterpart(name: str) -> str:
        return rename(name, renames)

    words = counterpart(f"{student_family.encoder}.embeddings.word_embeddings.weight")
    if student_family.factors and words in source:
        width = family.embedding_width(teacher.config)
        projection = student_family.factors.projection
        add_identity(source, counterpart(f"{projection}.weight"), counterpart(f"{projection}.bias"), width)
        if embedding_size is not None and embedding_size < width:
            read = _run_head(teacher, sample) if sample and family.has_head(teacher) else None
            source |= factorize(source, student_family, counterpart, embedding_size, token_counts, read)
    layers = re.compile(rf"{re.escape(student_family.layers)}\.(\d+)\.")
    places = student_family.layer_places(student.config)
    before = "" if student_family.prefix(student) else f"{student_family.encoder}."
    new_head = student_family.has_head(student) and not family.has_head(teacher)
    copied: set[int] = set()
    for own_name, target in student.named_parameters(remove_duplicate=False):
        name = f"{before}{own_name}"
        if id(target) in copied or (new_head and not name.startswith(f"{student_family.encoder}.")):
            continue
        names = [name]
        if layer := layers.match(name):
            if layer_map is None:
                continue
            of_place = [other for place, other in zip(places, layer_map, strict=True) if place == int(layer[1])]
            names = [layers.sub(f"{student_family.layers}.{other}.", name) for other in of_place]
        names = [counterpart(name) for name in names]
        module = names[0].rpartition(".")[0]
        lacks_norm = bool(family.absent_in_first) and module.endswith(f".{family.absent_in_first}")
        if names[0] not in source and (student_class or lacks_norm):
            continue
        whole = _mean([source[name] for name in names])
        parts = next((count for part, count in family.fused.items() if module.endswith(f".{part}")), 1)
        if layer:
            whole = _of_heads(whole, name.rpartition(".")[0], teacher, student)
        for own, other in zip(target.chunk(parts), whole.chunk(parts), strict=True):
            own.copy_(other[tuple(slice(size) for size in own.shape)])
        copied.add(id(target))
    return [name for name, parameter in student.named_parameters() if id(parameter) not in copied]


def _of_heads(weight: Tensor, module: str, teacher: PreTrainedModel, student: PreTrainedModel) -> Tensor:
    """Return a layer's weight or bias with the first dimensions of each head alone, where the student's are smaller.

    These are rows of what computes queries, keys and values, and columns of what reads the heads.

    Args:
        weight: The teacher's.
        module: The name of the student's module.
        teacher: The teacher.
        student: The student.
    """
    dims, own = (get_family(model).dims(model.config) for model in (teacher, student))
    family, size = get_family(student), own.width // own.heads
    if size == dims.width // dims.heads or family.outputs is None:
        return weight
    columns = module.endswith(f".{family.outputs[0]}") and weight.ndim > 1
    if not columns and not any(module.endswith(f".{projection}") for projection in family.projections):
        return weight
    dimension = int(columns)
    heads = weight.unflatten(dimension, (dims.heads, -1))
    return heads.narrow(dimension + 1, 0, size).flatten(dimension, dimension + 1)


def _parameters_of_layers(teacher: PreTrainedModel) -> dict[str, Tensor]:
    """Return a model's parameters by their names in a masked-LM model, where a tied one has two.

    One that several layers share has a name for each of them, with the layer's number instead of the group's.
    """
    family = get_family(teacher)
    layers, places = re.compile(rf"{re.escape(family.layers)}\.(\d+)\."), family.layer_places(teacher.config)
    before = "" if family.prefix(teacher) else f"{family.encoder}."
    parameters: dict[str, Tensor] = {}
    for own_name, parameter in teacher.named_parameters(remove_duplicate=False):
        name = f"{before}{own_name}"
        if layer := layers.match(name):
            shared_by = [number for number, place in enumerate(places) if place == int(layer[1])]
            parameters |= {layers.sub(f"{family.layers}.{number}.", name): parameter for number in shared_by}
        else:
            parameters[name] = parameter
    return parameters


def _mean(weights: Sequence[Tensor]) -> Tensor:
    """Return the mean of weights in fp32, each counted once; a single one as it is."""
    different = list({id(weight): weight for weight in weights}.values())
    return different[0] if len(different) == 1 else torch.stack([weight.float() for weight in different]).mean(0)


def sample_batches(sample: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the sequences of a sample of text, int64 [b, L], a few at a time."""
    for ids in sample:
        yield from ids.split(16)


def _run_head(teacher: PreTrainedModel, sample: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the hidden states [N, H] that a teacher's head reads, and [N, E], what its decoder does, fp32.

    N is the number of tokens of the sample.
    """
    family = get_family(teacher)
    parts = []
    for ids in sample_batches(sample):
        hidden, _ = run_encoder(teacher, ids.to(teacher.device), None)
        parts.append([x.flatten(0, 1).float().cpu() for x in (hidden, family.mlm_transform(teacher, hidden))])
    hidden, output = (torch.cat(part) for part in zip(*parts, strict=True))
    return hidden, output
