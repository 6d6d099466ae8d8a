"""Which layers of student and teacher a term of the objective compares."""

from __future__ import annotations

from collections.abc import Sequence

from ds_distill.models.intermediates import LAST
from ds_distill.utils.errors import UserError


def resolve_pairs(
    layers: str | Sequence[Sequence[int]],
    student_depth: int,
    teacher_depth: int,
    layer_map: Sequence[int] | None,
    key: str = "losses.match",
) -> list[tuple[int, int]]:
    """Return the pairs (student layer, teacher layer) that an entry of losses.match compares; LAST for a last layer.

    A student layer that starts from teacher layer m stands for the layers from m to the one before that from which
    the next student layer starts, and the first also for those below m, the last also for those above it. The last
    of these layers is the end of its span, whose output is what the next student layer, a copy of the layer above,
    expects. For a start from [1, 2, 4] of 6 layers the spans end with 1, 3 and 5. Where the start is the first layer
    of each of the teacher's equal groups of layers, they end as TinyBERT's mapping does, which is "uniform": its
    g(m) = m · depth of the teacher / depth of the student, where layers count from 1.

    Args:
        layers: The entry's `layers`.
        student_depth: The student's number of layers.
        teacher_depth: The teacher's number of layers.
        layer_map: The teacher layer that each student layer starts from, or None where it starts from none.
        key: The entry, for errors.

    Raises:
        UserError: The layers do not exist; "mapped", "mapped_last" or "span_ends" is asked of a student that did not
            start from the teacher's layers, "span_ends" of one whose layers are not in the teacher's order, or
            "uniform" where the student's depth does not divide the teacher's.

    Source of "uniform": Jiao et al. 2020 (TinyBERT), section 3.1, with the mapping of their experiments.
    """
    if layers == "last":
        return [(LAST, LAST)]
    if isinstance(layers, str):
        mapped = list(enumerate(_teacher_layers(layers, student_depth, teacher_depth, layer_map, key)))
        wanted: Sequence[Sequence[int]] = mapped[-1:] if layers == "mapped_last" else mapped
    else:
        wanted = layers
    pairs, example = [], _example(student_depth, teacher_depth)
    for number, (student, teacher) in enumerate(wanted):
        if not isinstance(layers, str) and (student, teacher) in [tuple(pair) for pair in layers[:number]]:
            raise UserError(
                f"{key}.layers: the pair [{student}, {teacher}] is given twice; give it once, and {key}.weight instead"
            )
        for who, layer, depth in (("student", student, student_depth), ("teacher", teacher, teacher_depth)):
            if 0 <= int(layer) < depth:
                continue
            if isinstance(layers, str):
                raise UserError(
                    f"{key}.layers = {layers}: the student started from layers {layer_map} of the teacher that it was "
                    f"distilled from, but this teacher has {depth} layers, 0 to {depth - 1}; give pairs such as "
                    f"{example}"
                )
            raise UserError(
                f"{key}.layers: {who} layer {layer}: the {who} has {depth} layers, 0 to {depth - 1}; "
                "pairs are [student layer, teacher layer]"
            )
        pairs.append(
            (
                LAST if student == student_depth - 1 else int(student),
                LAST if teacher == teacher_depth - 1 else int(teacher),
            )
        )
    if not pairs:
        raise UserError(f"{key}.layers is empty: give last, mapped, or pairs such as {example}")
    return pairs


def _teacher_layers(
    layers: str, student_depth: int, teacher_depth: int, layer_map: Sequence[int] | None, key: str
) -> list[int]:
    """Return the teacher's layer for each layer of the student."""
    if layers == "uniform":
        group, rest = divmod(teacher_depth, student_depth)
        if rest or not group:
            raise UserError(
                f"{key}.layers = uniform: the teacher's {teacher_depth} layers are not a multiple of the student's "
                f"{student_depth}; give pairs such as {_example(student_depth, teacher_depth)}"
            )
        return [group * (layer + 1) - 1 for layer in range(student_depth)]
    if layer_map is None:
        raise UserError(
            f"{key}.layers = {layers}: the student does not start from the teacher's layers, so none is mapped to "
            f"its layers; give pairs such as {_example(student_depth, teacher_depth)}"
        )
    if layers in ("mapped", "mapped_last"):
        return list(layer_map)
    if any(next_layer <= layer for layer, next_layer in zip(layer_map, layer_map[1:], strict=False)):
        raise UserError(
            f"{key}.layers = {layers}: the student starts from the teacher's layers {list(layer_map)}, which are not "
            f"in ascending order, so they have no spans; give pairs such as {_example(student_depth, teacher_depth)}"
        )
    return [*(layer - 1 for layer in layer_map[1:]), teacher_depth - 1]


def _example(student_depth: int, teacher_depth: int) -> list[list[int]]:
    """Return pairs that can be given for models of these depths."""
    first = [[0, 0]] if min(student_depth, teacher_depth) > 1 else []
    return [*first, [student_depth - 1, teacher_depth - 1]]
