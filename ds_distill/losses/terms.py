"""The terms of the objective that compare what lies inside student and teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from ds_distill.losses.head_terms import AttentionLoss, RelationLoss
from ds_distill.losses.layer_pairs import resolve_pairs
from ds_distill.losses.match_checks import HEAD_LOSSES, check_match, head_sizes, resolve_heads
from ds_distill.losses.matching import LOSSES
from ds_distill.models.ensemble import counterparts
from ds_distill.models.families import get_family_by_type
from ds_distill.models.intermediates import Site
from ds_distill.recipe import Losses, Match


class MatchedLoss(nn.Module):
    """A term of the objective: a loss between hidden states or embeddings, summed over pairs of layers.

    Where the widths of student and teacher differ, it compares a learned projection of the student's
    quantities. The projection is trained and checkpointed, but is no part of the model.

    Attributes:
        averages_teachers: Whether the term is over the mean of several teachers, whose states it then needs; else it
            is over the first one's.
        deviations: The teacher's standard deviation of each dimension [H], fp32, by the teacher's site, which
            divides both sides. `training.deviations` measures it for those in `divided`.
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
        self.sites: list[tuple[Site, Site]] = []
        for quantity in match.quantities:
            if quantity == "embeddings":
                self.sites.append((Site("embeddings", 0), Site("embeddings", 0)))
            else:
                self.sites += [(Site("hidden", student), Site("hidden", teacher)) for student, teacher in pairs]
        self._normalize = match.normalize
        self.deviations: dict[Site, Tensor] = {}
        self.projection = None
        if student_width != teacher_width:
            self.projection = nn.Linear(student_width, teacher_width, bias=False)
            nn.init.eye_(self.projection.weight)  # a narrower student starts as the teacher's first coordinates

    @property
    def divided(self) -> frozenset[Site]:
        """The teacher's sites whose deviations divide both sides."""
        return frozenset(teacher for _, teacher in self.sites) if self._normalize else frozenset()

    def forward(
        self,
        student: Mapping[Site, Tensor],
        teacher: Mapping[Site, Tensor],
        token_mask: Tensor | None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the loss summed over pairs and tokens, a scalar in fp32.

        Args:
            student: The student's quantities by site.
            teacher: The teacher's.
            token_mask: [B, L] bool, False for padding; None where all tokens are real.
            document_ids: Not used: tokens are compared one by one.
        """
        return self.compare(self.project(student), teacher, token_mask)

    def project(self, student: Mapping[Site, Tensor]) -> list[Tensor]:
        """Return the student's quantities [B, L, H], as wide as the teacher's, in the order of the pairs."""
        states = [student[site] for site, _ in self.sites]
        return states if self.projection is None else [self.projection(each) for each in states]

    def compare(self, student: Sequence[Tensor], teacher: Mapping[Site, Tensor], token_mask: Tensor | None) -> Tensor:
        """Return the loss as `forward` does.

        Args:
            student: What `project` has returned.
            teacher: The teacher's quantities by site.
            token_mask: As in `forward`.
        """
        sums = []
        for states, (_, teacher_site) in zip(student, self.sites, strict=True):
            wanted = teacher[teacher_site]
            if self._normalize:
                deviation = self.deviations[teacher_site]
                wide = torch.promote_types(states.dtype, torch.float32)  # fp16 may end below what a small one gives
                states, wanted = states.to(wide) / deviation, wanted.to(wide) / deviation
            sums.append(self.distance(states, wanted, token_mask))
        return sum(sums[1:], sums[0])


def make_matches(
    losses: Losses,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    layer_map: Sequence[int] | None,
    further_teachers: Sequence[PretrainedConfig] = (),
) -> dict[str, MatchedLoss | RelationLoss | AttentionLoss]:
    """Return the modules of the terms that `Losses.matched_terms` names.

    Args:
        losses: The recipe's losses.
        student: The student's config.
        teacher: The teacher's config; None for one of the student's own sizes.
        layer_map: The teacher layer that each student layer starts from, or None where it starts from none.
        further_teachers: The configs of the other teachers, over all of which relations are averaged.

    Raises:
        UserError: An entry of losses.match cannot be: its loss is unknown, its keys do not fit each other, its
            layers do not exist, its heads do not divide the widths, or a family does not have what it compares.
    """
    configs = (student, teacher or student, *further_teachers)
    families = [get_family_by_type(config.model_type) for config in configs]
    student_dims, teacher_dims, *_ = (family.dims(config) for family, config in zip(families, configs, strict=True))
    matches: dict[str, MatchedLoss | RelationLoss | AttentionLoss] = {}
    for index, (name, match) in enumerate(losses.matched_terms().items(), -1 if losses.cosine else 0):
        key = f"losses.match[{index}]"
        check_match(match, families if match.loss == "relation" else families[:2], key)
        if match.quantities == ["embeddings"]:
            pairs = []
        else:
            pairs = resolve_pairs(match.layers, student_dims.depth, teacher_dims.depth, layer_map, key)
        if match.loss in HEAD_LOSSES:
            averaged = further_teachers if match.loss == "relation" else ()
            # a layer's projections are its own, also where its output is the encoder's
            layers = [(low % student_dims.depth, high % teacher_dims.depth) for low, high in pairs]
            heads = []
            for low, high in layers:
                of_teachers = [head_sizes(configs[1], high, "teacher", key)]
                for other in averaged:
                    (there,) = counterparts([Site("query", high)], configs[1], other)
                    of_teachers.append(head_sizes(other, there.layer, "teacher", key))
                heads.append(resolve_heads(match, head_sizes(student, low, "student", key), of_teachers, key))
            kind = RelationLoss if match.loss == "relation" else AttentionLoss
            matches[name] = kind(match, layers, heads)
        else:
            matches[name] = MatchedLoss(match, pairs, student_dims.width, teacher_dims.width)
    return matches


def teacher_sites(
    matches: Iterable[MatchedLoss | RelationLoss | AttentionLoss],
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Return (what terms need of the teacher, what of that they need of further teachers too)."""
    of_all = [(site, match.averages_teachers) for match in matches for _, site in match.sites]
    return (
        tuple(dict.fromkeys(site for site, _ in of_all)),
        tuple(dict.fromkeys(site for site, averaged in of_all if averaged)),
    )
