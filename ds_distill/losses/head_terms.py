"""The terms of the objective that compare relations between tokens, head by head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from ds_distill.config.losses import Match, Quantity
from ds_distill.losses.relations import attention_score_mse_per_token, ensemble_relation_kl
from ds_distill.models.intermediates import Site

States = Mapping[Site, Tensor]
Vector = Literal["query", "key", "value"]
QUERY_KEY: tuple[Vector, Vector] = ("query", "key")
RELATIONS: dict[Quantity, tuple[Vector, Vector]] = {
    "query": ("query", "query"),
    "key": ("key", "key"),
    "value": ("value", "value"),
    "query_key": QUERY_KEY,
}


class RelationLoss(nn.Module):
    """A term of the objective: the KL divergence of the student's relations from the teacher's.

    The vectors of all attention heads, side by side, are divided anew into relation heads, so the models
    may have any numbers of attention heads and any widths.

    Relations are distributions, so those of several teachers, of any widths that the heads divide, have a mean.

    Source: Wang et al. 2021 (MiniLMv2), section 3.1.
    """

    averages_teachers = True

    def __init__(self, match: Match, pairs: Sequence[tuple[int, int]], heads: Sequence[int]):
        """Make the term.

        Args:
            match: The recipe's entry.
            pairs: (student layer, teacher layer), each from 0.
            heads: For each pair, the number of relation heads, which divides all widths.
        """
        super().__init__()
        self.weight, self.heads, self.pairs = match.weight, tuple(heads), tuple(pairs)
        self.relations = [RELATIONS[quantity] for quantity in match.quantities]
        self.sites = _sites(self.relations, self.pairs)

    def forward(
        self,
        student: States,
        teacher: States,
        token_mask: Tensor | None,
        document_ids: Tensor | None = None,
        others: Sequence[States] = (),
        weights: Sequence[float] | None = None,
    ) -> Tensor:
        """Return the KL divergence in nats, summed over pairs, relations and tokens, as a mean over heads, in fp32.

        Args:
            student: The student's queries, keys and values [B, L, H] by site.
            teacher: The teacher's.
            token_mask: [B, L] bool, False for padding; None where all tokens are real.
            document_ids: [B, L] int, where tokens see their own document only; else None.
            others: Those of further teachers, by the first one's sites.
            weights: The weight of each teacher, the first one's first; None weighs all alike.
        """
        teachers = (teacher, *others)
        # a teacher that counts nothing has no part in the mean
        counted = [pair for pair in zip(teachers, weights or [1.0] * len(teachers), strict=True) if pair[1] > 0]
        counted_states, weights = [states for states, _ in counted], [weight for _, weight in counted]
        names = dict.fromkeys(name for relation in self.relations for name in relation)
        total = []
        for (low, high), heads in zip(self.pairs, self.heads, strict=True):
            own = {name: _split(student[Site(name, low)], heads) for name in names}
            wanted = [{name: _split(states[Site(name, high)], heads) for name in names} for states in counted_states]
            of_pair = [
                ensemble_relation_kl(
                    own[a],  # a self-relation is known by its two arguments being one tensor
                    own[b],
                    [(vectors[a], vectors[b]) for vectors in wanted],
                    weights,
                    token_mask=token_mask,
                    document_ids=document_ids,
                )
                for a, b in self.relations
            ]
            total.append(sum(of_pair[1:], of_pair[0]) / heads)
        return sum(total[1:], total[0])


class AttentionLoss(nn.Module):
    """A term of the objective: the squared error of the student's attention scores before softmax.

    Both models must have as many attention heads; their widths may differ.

    Source: Jiao et al. 2020 (TinyBERT), section 3.1, equation 7.
    """

    averages_teachers = False

    def __init__(self, match: Match, pairs: Sequence[tuple[int, int]], heads: Sequence[int]):
        """Make the term.

        Args:
            match: The recipe's entry.
            pairs: (student layer, teacher layer), each from 0.
            heads: For each pair, the number of attention heads of both layers.
        """
        super().__init__()
        self.weight, self.heads, self.pairs = match.weight, tuple(heads), tuple(pairs)
        self.sites = _sites([QUERY_KEY], self.pairs)

    def forward(
        self, student: States, teacher: States, token_mask: Tensor | None, document_ids: Tensor | None = None
    ) -> Tensor:
        """Return the squared error, summed over pairs of layers and tokens, in fp32.

        For each token it is a mean over heads and over the real tokens that it sees. For sequences of one length this
        is TinyBERT's mean over the entries of the attention matrix, and it depends on no other sequence of the batch.

        Args:
            student: The student's queries and keys [B, L, H] by site.
            teacher: The teacher's.
            token_mask: [B, L] bool, False for padding; None where all tokens are real.
            document_ids: [B, L] int, where tokens see their own document only; else None.
        """
        total = []
        for (low, high), heads in zip(self.pairs, self.heads, strict=True):
            vectors = [
                _split(states[Site(name, layer)], heads)
                for states, layer in ((student, low), (teacher, high))
                for name in QUERY_KEY
            ]
            error = attention_score_mse_per_token(*vectors, token_mask=token_mask, document_ids=document_ids)
            total.append(error / heads)
        return sum(total[1:], total[0])


def _sites(relations: Iterable[tuple[Vector, Vector]], pairs: Iterable[tuple[int, int]]) -> list[tuple[Site, Site]]:
    """Return the pairs of sites (student's, teacher's) that relations at pairs of layers need, each once."""
    names = dict.fromkeys(name for relation in relations for name in relation)
    return [(Site(name, low), Site(name, high)) for low, high in pairs for name in names]


def _split(vectors: Tensor, heads: int) -> Tensor:
    """Return [B, heads, L, H / heads] of vectors [B, L, H]."""
    return vectors.unflatten(-1, (heads, -1)).transpose(1, 2)
