"""The terms of the objective that compare what lies inside student and teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from transformers import PretrainedConfig

from ds_distill.losses.matching import LOSSES
from ds_distill.models.families import get_family_by_type
from ds_distill.models.intermediates import LAST, Site
from ds_distill.recipe import Losses, Match
from ds_distill.utils.errors import UserError, did_you_mean


class MatchedLoss(nn.Module):
    """One term of the objective: a loss between recorded quantities, summed over pairs of layers.

    Where the widths of student and teacher differ, it compares a learned projection of the student's
    quantities. The projection is trained and checkpointed, but is no part of the model.

    Attributes:
        averages_teachers: Whether the term is over the mean of several teachers, whose states it then needs; else it
            is over the first one's.
    """

    averages_teachers = False

    def __init__(self, match: Match, pairs: Sequence[tuple[int, int]], student_width: int, teacher_width: int):
        """Make the term.

        Args:
            match: The recipe's entry.
            pairs: (student layer, teacher layer), each from 0 or LAST.
            student_width: The student's hidden size.
            teacher_width: The teacher's hidden size.
        """
        super().__init__()
        self.weight = match.weight
        self.distance = LOSSES[match.loss]
        self.sites = [(Site(match.of, student), Site(match.of, teacher)) for student, teacher in pairs]
        self.projection = None
        if student_width != teacher_width:
            self.projection = nn.Linear(student_width, teacher_width, bias=False)
            nn.init.eye_(self.projection.weight)  # a narrower student starts as the teacher's first coordinates

    def forward(
        self, student: Mapping[Site, Tensor], teacher: Mapping[Site, Tensor], token_mask: Tensor | None
    ) -> Tensor:
        """Return the loss summed over pairs and tokens, a scalar in fp32.

        Args:
            student: The student's quantities by site.
            teacher: The teacher's.
            token_mask: [B, L] bool, False for padding; None where all tokens are real.
        """
        sums = []
        for student_site, teacher_site in self.sites:
            states = student[student_site]
            if self.projection is not None:
                states = self.projection(states)
            sums.append(self.distance(states, teacher[teacher_site], token_mask))
        return sum(sums[1:], sums[0])


def make_matches(
    losses: Losses, student: PretrainedConfig, teacher: PretrainedConfig | None, layer_map: Sequence[int] | None
) -> dict[str, MatchedLoss]:
    """Return the modules of the terms that `Losses.matched_terms` names.

    Args:
        losses: The recipe's losses.
        student: The student's config.
        teacher: The teacher's config; None for one of the student's own sizes.
        layer_map: The teacher layer that each student layer starts from, or None where it starts from none.

    Raises:
        UserError: An entry of losses.match names an unknown loss or layers that do not exist.
    """
    student_dims = get_family_by_type(student.model_type).dims(student)
    teacher_dims = student_dims if teacher is None else get_family_by_type(teacher.model_type).dims(teacher)
    matches: dict[str, MatchedLoss] = {}
    for index, (name, match) in enumerate(losses.matched_terms().items(), -1 if losses.cosine else 0):
        key = f"losses.match[{index}]"
        if match.loss not in LOSSES:
            raise UserError(
                f"{key}.loss = {match.loss}: no such loss{did_you_mean(match.loss, LOSSES)} ({', '.join(LOSSES)})"
            )
        pairs = resolve_pairs(match.layers, student_dims.depth, teacher_dims.depth, layer_map, key)
        matches[name] = MatchedLoss(match, pairs, student_dims.width, teacher_dims.width)
    return matches


def teacher_sites(matches: Iterable[MatchedLoss]) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Return (what terms need of the teacher, what of that they need of further teachers too)."""
    of_all = [(site, match.averages_teachers) for match in matches for _, site in match.sites]
    return (
        tuple(dict.fromkeys(site for site, _ in of_all)),
        tuple(dict.fromkeys(site for site, averaged in of_all if averaged)),
    )


def resolve_pairs(
    layers: str | Sequence[Sequence[int]],
    student_depth: int,
    teacher_depth: int,
    layer_map: Sequence[int] | None,
    key: str = "losses.match",
) -> list[tuple[int, int]]:
    """Return the pairs (student layer, teacher layer) that an entry of losses.match compares; LAST for a last layer.

    Args:
        layers: The entry's `layers`.
        student_depth: The student's number of layers.
        teacher_depth: The teacher's number of layers.
        layer_map: The teacher layer that each student layer starts from, or None where it starts from none.
        key: The entry, for errors.

    Raises:
        UserError: The layers do not exist, or "mapped" is asked of a student that did not start from the teacher's.
    """
    if layers == "last":
        return [(LAST, LAST)]
    if layers == "mapped":
        if layer_map is None:
            raise UserError(
                f"{key}.layers = mapped: the student does not start from the teacher's layers, so none is mapped to "
                "its layers; give pairs such as [[0, 1], [1, 3]]"
            )
    requested = enumerate(layer_map or ()) if isinstance(layers, str) else layers
    pairs = []
    for student, teacher in requested:
        for who, layer, depth in (("student", student, student_depth), ("teacher", teacher, teacher_depth)):
            if not 0 <= int(layer) < depth:
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
        raise UserError(f"{key}.layers is empty: give last, mapped, or pairs such as [[0, 1], [1, 3]]")
    return pairs
