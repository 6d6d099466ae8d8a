"""What the terms of losses.match add to a training step: operations and memory per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PretrainedConfig

from ds_distill.losses.head_terms import AttentionLoss, RelationLoss
from ds_distill.losses.terms import make_matches, teacher_sites
from ds_distill.models.families import get_family_by_type
from ds_distill.recipe import Losses


class MatchCost(NamedTuple):
    """What the terms take per token.

    Args:
        flops: Floating-point operations, forward and backward. A product that a kernel computes twice counts once.
        bytes: What is kept until the backward pass, and the largest term's temporaries.
    """

    flops: float
    bytes: float


def match_cost(
    losses: Losses,
    student: PretrainedConfig,
    teacher: PretrainedConfig,
    layer_map: Sequence[int] | None,
    length: int,
    teacher_size: int,
    further_teachers: Sequence[PretrainedConfig] = (),
) -> MatchCost:
    """Return what the entries of losses.match take; the cosine loss of the last layers is counted elsewhere.

    Args:
        losses: The recipe's losses.
        student: The student's config.
        teacher: The teacher's config.
        layer_map: The teacher layer that each student layer starts from, or None where it starts from none.
        length: Tokens per sequence, each of which is compared with all others.
        teacher_size: Bytes of one of the teacher's numbers.
        further_teachers: The configs of the other teachers, over all of which relations are averaged.

    Raises:
        UserError: As `make_matches` does.
    """
    own, wide, *others = (
        get_family_by_type(config.model_type).dims(config).width for config in (student, teacher, *further_teachers)
    )
    flops = kept = temporary = 0.0
    matches = make_matches(replace(losses, cosine=0.0), student, teacher, layer_map, further_teachers).values()
    recorded, averaged = teacher_sites(matches)
    for match in matches:
        if isinstance(match, RelationLoss):
            for a, b in match.relations:
                # scores of both models, and the gradient in both vectors
                flops += len(match.pairs) * 2 * length * (wide + sum(others) + 3 * own)
                kept += len(match.pairs) * 4 * own * (1 if a == b else 2)
        elif isinstance(match, AttentionLoss):
            # of each head, products of its queries and of its keys with themselves, and the gradients in both
            for heads in match.heads:
                both = (own + wide) / heads
                flops += 2 * (2 * both * (own + wide) + 4 * both * own)
            kept += len(match.pairs) * 4 * 2 * own
            temporary = max(temporary, 4 * 2 * (own + wide))  # fp32 copies
        else:
            if match.projection is not None:
                flops += len(match.sites) * 3 * 2 * own * wide
            kept += len(match.sites) * 4 * 2 * wide  # fp32 copies of both
    states = len(recorded) * wide + len(averaged) * sum(others)
    return MatchCost(flops, kept + temporary + teacher_size * states)
