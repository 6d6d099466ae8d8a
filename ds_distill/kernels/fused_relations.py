"""The losses of `ds_distill.kernels.relations` with their gradients, one sequence at a time.

A tile of the score matrices exists at a time, small enough for a CPU's cache. Its gradient is finished while it
is there, so nothing is kept for the backward pass but the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# The scores of a tile, of which three exist at a time, beside the vectors of one sequence. A GPU needs many to be busy.
TILE = {"cpu": 2**18, "cuda": 2**24}


def fused_relation_kl(
    student: tuple[Tensor, Tensor],
    teachers: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float],
    real: Tensor | None,
    documents: Tensor | None,
    d_student: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Return the loss of plain_relation_kl, and write its gradient into `d_student`.

    Args:
        student: (a, b), each [B, R, L, d].
        teachers: The same of each teacher, whose d may differ.
        weights: The weight of each teacher; they add up to 1.
        real: [B, L] bool, False for padding. None where all tokens are real.
        documents: [B, L] int, or None where a sequence is one document.
        d_student: Zeros [B, R, L, d], where the gradients in a and b are added, or None where none is wanted. Both
            may be one tensor, which then has the gradient in a vector that is both.
    """
    device, dtype = student[0].device, _accumulation_dtype(student)
    parts = [torch.zeros((), dtype=torch.float64, device=device)]
    tiles = _Tiles(device, dtype)
    for sequence, tokens in token_groups(student[0].shape, real, documents):
        a, b = _vectors(student, sequence, tokens, dtype)
        of_teachers = [_vectors(teacher, sequence, tokens, dtype) for teacher in teachers]
        d_a, d_b = (None if d is None else torch.zeros_like(a) for d in d_student)
        if d_student[0] is d_student[1]:
            d_b = d_a
        for heads, rows in tiles.slices(a.shape):
            shifted = tiles.scores(0, a[heads, rows], b[heads])
            log_p, p, p_factor = _mean_distribution(
                tiles, [(t_a[heads, rows], t_b[heads]) for t_a, t_b in of_teachers], weights
            )
            ratio = log_p.sub_(shifted)
            q = shifted.exp_()
            q_factor = q.sum(-1, keepdim=True).reciprocal_()
            d_scores = q.mul_(q_factor).sub_(p)
            # Σ (q − p) is 0 but for the rounding of the two normalizers, so adding it removes that rounding from a
            # small KL
            parts += [torch.dot(p.view(-1), ratio.view(-1)), d_scores.sum()]
            parts.append(p_factor.double().div_(q_factor).log_().sum())
            factor = a.shape[-1] ** -0.5
            if d_a is not None:
                d_a[heads, rows].baddbmm_(d_scores, b[heads], alpha=factor)
            if d_b is not None:
                d_b[heads].baddbmm_(d_scores.mT, a[heads, rows], alpha=factor)
        _write(d_student, (d_a, d_b), sequence, tokens)
    return torch.stack([part.double() for part in parts]).sum().to(dtype)


def fused_score_error(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    real: Tensor | None,
    documents: Tensor | None,
    d_student: tuple[Tensor | None, Tensor | None],
    per_token: bool = False,
) -> Tensor:
    """Return the loss of plain_score_error, and write its gradient into `d_student`.

    There are no scores at all. With the errors E = U Vᵀ, ‖E‖² is Σ UᵀU ∘ VᵀV, in matrices of the size of
    a head, the errors being 0 where padding is. They are float64, since what they add up to cancels where
    the scores nearly agree. The other arguments are those of fused_relation_kl.
    """
    device, dtype = student[0].device, _accumulation_dtype(student)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for sequence, tokens in token_groups(student[0].shape, real, documents):
        a, b = _vectors(student, sequence, tokens, dtype)
        t_a, t_b = _vectors(teacher, sequence, tokens, dtype)
        d_a, d_b = (None if d is None else torch.empty_like(a) for d in d_student)
        seen = max(1, a.shape[1]) if per_token else 1  # as many for each token of the group
        heads = max(1, TILE[device.type] // 8 // max(1, a.shape[1] * (a.shape[2] + t_a.shape[2])))
        for first in range(0, len(a), heads):
            part = slice(first, first + heads)
            value, *gradients = _score_error(a[part], b[part], t_a[part], t_b[part])
            loss += value / seen
            for d, gradient in zip((d_a, d_b), gradients, strict=True):
                if d is not None:
                    d[part] = gradient / seen
        if d_a is not None and d_b is not None and d_student[0] is d_student[1]:
            d_a += d_b
        _write(d_student, (d_a, d_b), sequence, tokens)
    return loss.to(dtype)


def _score_error(a: Tensor, b: Tensor, t_a: Tensor, t_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (Σ (t_ij − s_ij)², its gradient in a, its gradient in b) of some heads' vectors, each [h, n, d]."""
    width, t_width, scale = a.shape[-1], t_a.shape[-1], a.shape[-1] ** -0.5
    scaled_a, scaled_t = a * scale, t_a * t_width**-0.5
    if width == t_width:  # in differences, so that equal vectors give exactly 0
        u, v = torch.cat([scaled_t - scaled_a, scaled_a], -1), torch.cat([t_b, t_b - b], -1)
    else:
        u, v = torch.cat([scaled_t, -scaled_a], -1), torch.cat([t_b, b], -1)
    u_gram, v_gram = (x.mT @ x for x in (u.double(), v.double()))
    loss = torch.sum(u_gram * v_gram)
    if width == t_width:
        u_a, v_b = u_gram[..., width:], v_gram[..., :width] - v_gram[..., width:]
    else:
        u_a, v_b = -u_gram[..., t_width:], v_gram[..., t_width:]
    return loss, u @ (v_b * (-2 * scale)).to(u.dtype), v @ (u_a * -2).to(v.dtype)


def token_groups(
    shape: Sequence[int], real: Tensor | None, documents: Tensor | None
) -> Iterator[tuple[int, Tensor | None]]:
    """Yield (sequence, the positions of tokens that see each other); None for all positions.

    Args:
        shape: [B, R, L, …].
        real: [B, L] bool or None, as in fused_relation_kl.
        documents: [B, L] int or None.
    """
    for sequence in range(shape[0]):
        if real is None and documents is None:
            yield sequence, None
            continue
        tokens = torch.arange(shape[2], device=next(x.device for x in (real, documents) if x is not None))
        tokens = tokens if real is None else tokens[real[sequence]]
        if documents is None:
            yield sequence, tokens
            continue
        numbers, order = documents[sequence, tokens].sort(stable=True)
        lengths = numbers.unique_consecutive(return_counts=True)[1].tolist()
        yield from ((sequence, group) for group in tokens[order].split(lengths))


def _mean_distribution(
    tiles: _Tiles, teachers: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (log p less log of the factor, p, a factor of each row), where p = Σ_k w_k softmax_j(t_k), [h, rows, n].

    The teachers' vectors are those of the tile, a [h, rows, d] and b [h, n, d]. The results lie in tiles 1 and 2.
    """
    if len(teachers) == 1:
        scores = tiles.scores(1, *teachers[0])
        p = torch.exp(scores, out=tiles.view(2, scores.shape))
        factor = p.sum(-1, keepdim=True).reciprocal_()
        return scores, p.mul_(factor), factor
    shape = (*teachers[0][0].shape[:2], teachers[0][1].shape[1])
    p = tiles.view(2, shape).zero_()
    for (a, b), weight in zip(teachers, weights, strict=True):
        summands = tiles.scores(1, a, b).exp_()
        p.addcmul_(summands, summands.sum(-1, keepdim=True).reciprocal_(), value=weight)
    log_p = torch.clamp(p, min=torch.finfo(p.dtype).tiny, out=tiles.view(1, shape)).log_()
    return log_p, p, p.new_ones(*shape[:2], 1)


class _Tiles:
    """Memory of a tile's scores, which one tile after another uses."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.limit = TILE[device.type]
        self.memory: list[Tensor] = [torch.empty(0, device=device, dtype=dtype) for _ in range(3)]

    def view(self, which: int, shape: Sequence[int]) -> Tensor:
        """Return one of the three tiles, in this shape, with arbitrary contents."""
        size = shape[0] * shape[1] * shape[2]
        if self.memory[which].numel() < size:
            self.memory[which] = self.memory[which].new_empty(size)
        return self.memory[which][:size].view(*shape)

    def slices(self, shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
        """Yield the (heads, rows) of each tile of [R, n, d] vectors; rows of several heads where all rows fit."""
        all_heads, all_rows = shape[0], shape[1]
        rows = max(1, min(all_rows, self.limit // max(1, all_rows)))
        heads = max(1, self.limit // max(1, all_rows * all_rows))
        for head in range(0, all_heads, heads):
            for row in range(0, all_rows, rows):
                yield slice(head, min(head + heads, all_heads)), slice(row, min(row + rows, all_rows))

    def scores(self, which: int, a: Tensor, b: Tensor) -> Tensor:
        """Return a_i·b_j / √d less its maximum over j in the tile `which`, [h, rows, n].

        Args:
            which: The number of the tile.
            a: [h, rows, d].
            b: [h, n, d].
        """
        scores = self.view(which, (a.shape[0], a.shape[1], b.shape[1]))
        torch.baddbmm(scores, a, b.mT, beta=0, alpha=a.shape[-1] ** -0.5, out=scores)
        return scores.sub_(scores.amax(-1, keepdim=True))


def _accumulation_dtype(student: tuple[Tensor, Tensor]) -> torch.dtype:
    return torch.promote_types(torch.promote_types(student[0].dtype, student[1].dtype), torch.float32)


def _vectors(
    pair: tuple[Tensor, Tensor], sequence: int, tokens: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return a sequence's vectors [R, n, d], of some tokens or all.

    They are copies, so that equal vectors have equal scores to the last bit however they lie in memory.
    """

    def of(x: Tensor) -> Tensor:
        part = x[sequence] if tokens is None else x[sequence].index_select(1, tokens)
        return torch.empty(part.shape, dtype=dtype, device=part.device).copy_(part)

    a = of(pair[0])
    return a, a if pair[1] is pair[0] else of(pair[1])


def _write(
    outs: tuple[Tensor | None, Tensor | None],
    gradients: tuple[Tensor | None, Tensor | None],
    sequence: int,
    tokens: Tensor | None,
) -> None:
    for out, gradient in zip(outs[: 1 if outs[0] is outs[1] else 2], gradients, strict=False):
        if out is None or gradient is None:
            continue
        if tokens is None:
            out[sequence].copy_(gradient)
        else:
            out[sequence].index_copy_(1, tokens, gradient.to(out.dtype))
