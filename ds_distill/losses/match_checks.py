"""Whether an entry of losses.match can be: its loss, what it compares, and its heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PretrainedConfig

from ds_distill.losses.matching import LOSSES
from ds_distill.models.families import get_family_by_type
from ds_distill.models.families.family import Family
from ds_distill.models.layer_shapes import layer_shapes
from ds_distill.recipe import Match
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError, did_you_mean

# Losses between vectors of heads, and what each compares; the others compare hidden states.
HEAD_LOSSES = {"relation": ("query", "key", "value", "query_key"), "attention": ("query_key",)}
HIDDEN = ("hidden", "embeddings")
RELATION_HEAD = 16  # MiniLMv2's width of a teacher's relation head: 48 heads of 768, 64 of 1,024


def check_match(match: Match, families: Sequence[Family], key: str) -> None:
    """Raise UserError where keys of an entry do not fit each other, or a family does not have what it compares.

    Args:
        match: The entry.
        families: The student's family, and those of the teachers whose vectors are compared.
        key: The entry, for errors.
    """
    known = (*LOSSES, *HEAD_LOSSES)
    if match.loss not in known:
        raise UserError(
            f"{key}.loss = {match.loss}: no such loss{did_you_mean(match.loss, known)} ({', '.join(known)})"
        )
    allowed = HEAD_LOSSES.get(match.loss, HIDDEN)
    if not match.quantities:
        raise UserError(f"{key}.of is empty: give {' or '.join(allowed)}, or leave it out")
    for index, quantity in enumerate(match.quantities):
        if quantity not in allowed:
            raise UserError(f"{key}.of = {quantity}: the loss {match.loss} compares {' or '.join(allowed)}; give that")
        if quantity in match.quantities[:index]:
            raise UserError(f"{key}.of names {quantity} twice; name it once, and give {key}.weight instead")
    if match.heads is not None and match.loss != "relation":
        raise UserError(f"{key}.heads = {match.heads}: the loss {match.loss} has no relation heads; leave it out")
    if match.normalize and match.loss in HEAD_LOSSES:
        raise UserError(
            f"{key}.normalize = true: the loss {match.loss} compares no hidden states, whose dimensions it could "
            "divide; leave it out"
        )
    if match.quantities == ["embeddings"] and match.layers != "mapped":
        raise UserError(f"{key}.layers = {match.layers}: embeddings lie below all layers; leave it out")
    for number, family in enumerate(families):
        who = "teacher" if number else "student"
        if "query_key" in match.quantities and family.scores_positions:
            raise UserError(
                f"{key}.of = query_key: the {who} is {with_article(family.name)}, whose attention scores have terms of "
                f"relative positions besides query · key; give {key}.loss = relation with of = query, key or value"
            )


class HeadSizes(NamedTuple):
    """The sizes of a layer's attention, of which pruning may have left a part.

    Attributes:
        width: The width of all its heads, side by side.
        heads: Their number.
        rotary: Whether positions turn pairs of neighboring dimensions of its queries and keys.
    """

    width: int
    heads: int
    rotary: bool = False


def head_sizes(config: PretrainedConfig, layer: int, who: str, key: str) -> HeadSizes:
    """Return the sizes of a layer's attention.

    Args:
        config: The model's config.
        layer: The layer whose heads are compared; the last may be counted from the end.
        who: "student" or "teacher", for errors.
        key: The entry, for errors.

    Raises:
        UserError: The layer has no heads left.
    """
    family = get_family_by_type(config.model_type)
    dims = family.dims(config)
    heads = layer_shapes(config)[layer % dims.depth].heads
    if not heads:
        raise UserError(
            f"{key}.layers: the {who}'s layer {layer % dims.depth} has no attention heads left, so nothing of it can "
            "be compared; give pairs of other layers"
        )
    return HeadSizes(dims.width // dims.heads * heads, heads, family.rotary)


def resolve_heads(match: Match, student: HeadSizes, teachers: Sequence[HeadSizes], key: str) -> int:
    """Return the number of heads that a relation or attention loss compares at a pair of layers.

    Args:
        match: The entry, which `check_match` has passed.
        student: The sizes of the student's layer.
        teachers: Those of the teachers whose vectors are compared, the first one's first.
        key: The entry, for errors.

    Raises:
        UserError: `heads` does not divide all widths, or attention heads are compared whose numbers differ.
    """
    # A head of an odd width would part two dimensions that positions turn together.
    rotary = match.quantities != ["value"] and any(sizes.rotary for sizes in (student, *teachers))
    common = math.gcd(*(sizes.width // (2 if rotary and sizes.rotary else 1) for sizes in (student, *teachers)))
    widths = " and ".join(str(width) for width in dict.fromkeys(teacher.width for teacher in teachers))
    if match.heads is not None:
        if common % match.heads:
            divisors = ", ".join(str(heads) for heads in range(1, common + 1) if common % heads == 0)
            raise UserError(
                f"{key}.heads = {match.heads}: does not divide the student's width of {student.width} and the "
                f"teacher's of {widths}{' into heads of an even width' if rotary else ''}; give one of {divisors}"
            )
        return match.heads
    if "query_key" in match.quantities:
        for teacher in teachers:
            if student.heads != teacher.heads:
                remedy = f"give {key}.heads" if match.loss == "relation" else f"give {key}.loss = relation with heads"
                raise UserError(
                    f"{key}.of = query_key: the student has {student.heads} attention heads and the teacher "
                    f"{teacher.heads}, which must be equal to be compared; {remedy}, a divisor of both widths"
                )
        return student.heads
    heads = max(1, min(common, teachers[0].width // RELATION_HEAD))
    return next(heads for heads in range(heads, 0, -1) if common % heads == 0)
