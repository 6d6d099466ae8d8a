"""The losses of `ds_distill.kernels.relations` with their gradients, one sequence at a time.

A tile of the score matrices exists at a time, small enough for a CPU's cache. Its gradient is finished while it
is there, so nothing is kept for the backward pass but the gradients.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# The scores of a tile, of which four exist at a time, beside the vectors of one sequence. A GPU needs many to be busy.
TILE = {"cpu": 2**16, "cuda": 2**24}


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
    loss = torch.zeros((), dtype=torch.float64, device=device)
    tiles = _Tiles(device, dtype)
    for sequence, tokens in token_groups(student[0].shape, real, documents):
        a, b = _vectors(student, sequence, tokens, dtype)
        of_teachers = [_vectors(teacher, sequence, tokens, dtype) for teacher in teachers]
        d_a, d_b = (None if d is None else torch.zeros_like(a) for d in d_student)
        if d_student[0] is d_student[1]:
            d_b = d_a
        for heads, rows in tiles.parts(a.shape):
            log_q = tiles.log_softmax(0, a[heads, rows], b[heads])
            if len(teachers) == 1:
                log_p = tiles.log_softmax(1, of_teachers[0][0][heads, rows], of_teachers[0][1][heads])
                p = torch.exp(log_p, out=tiles.view(2, log_p.shape))
            else:
                p = tiles.view(2, log_q.shape).zero_()
                for (t_a, t_b), weight in zip(of_teachers, weights, strict=True):
                    p.add_(tiles.log_softmax(1, t_a[heads, rows], t_b[heads]).exp_(), alpha=weight)
                log_p = torch.clamp(p, min=torch.finfo(dtype).tiny, out=tiles.view(1, p.shape)).log_()
            ratio = log_p.sub_(log_q)
            d_scores = log_q.exp_().sub_(p)
            # Σ (q − p) is 0 but for the rounding of the two normalizers, so adding it removes that rounding from a
            # small KL
            loss += torch.dot(p.view(-1), ratio.view(-1)) + d_scores.sum()
            factor = a.shape[-1] ** -0.5
            if d_a is not None:
                d_a[heads, rows] += torch.bmm(d_scores, b[heads]).mul_(factor)
            if d_b is not None:
                d_b[heads] += torch.bmm(d_scores.mT, a[heads, rows]).mul_(factor)
        _write(d_student, (d_a, d_b), sequence, tokens)
    return loss.to(dtype)


def fused_score_error(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    real: Tensor | None,
    documents: Tensor | None,
    d_student: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """Return the loss of plain_score_error, and write its gradient into `d_student`.

    There are no scores at all. With the errors E = U Vᵀ, ‖E‖² is Σ UᵀU ∘ VᵀV, in matrices of the size of
    a head. They are float64, since the difference of scores that nearly agree cancels. The arguments are
    those of fused_relation_kl.
    """
    loss = torch.zeros((), dtype=torch.float64, device=student[0].device)
    for sequence, tokens in token_groups(student[0].shape, real, documents):
        a, b = _vectors(student, sequence, tokens, torch.float64)
        t_a, t_b = _vectors(teacher, sequence, tokens, torch.float64)
        a, t_a = a * a.shape[-1] ** -0.5, t_a * t_a.shape[-1] ** -0.5
        if a.shape == t_a.shape:  # in differences, so that equal vectors give exactly 0
            u, v = torch.cat([t_a - a, a], -1), torch.cat([t_b, t_b - b], -1)
        else:
            u, v = torch.cat([t_a, -a], -1), torch.cat([t_b, b], -1)
        loss += torch.sum((u.mT @ u) * (v.mT @ v))
        d_a = d_b = None
        if d_student[0] is not None:
            d_a = u @ (v.mT @ b) * (-2 * a.shape[-1] ** -0.5)
        if d_student[1] is not None:
            d_b = v @ (u.mT @ a) * -2
        if d_student[0] is d_student[1] and d_a is not None:
            d_a += d_b
        _write(d_student, (d_a, d_b), sequence, tokens)
    return loss.to(_accumulation_dtype(student))


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
        everything = torch.arange(shape[2], device=documents.device if real is None else real.device)
        tokens = everything if real is None else everything[real[sequence]]
        if documents is None:
            yield sequence, tokens
            continue
        numbers, order = documents[sequence, tokens].sort(stable=True)
        lengths = numbers.unique_consecutive(return_counts=True)[1].tolist()
        yield from ((sequence, group) for group in tokens[order].split(lengths))


class _Tiles:
    """Memory of a tile's scores, which one tile after another uses."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.limit = TILE[device.type]
        self.memory: list[Tensor] = [torch.empty(0, device=device, dtype=dtype) for _ in range(4)]

    def view(self, which: int, shape: Sequence[int]) -> Tensor:
        """Return one of the four tiles, in this shape, with arbitrary contents."""
        size = shape[0] * shape[1] * shape[2]
        if self.memory[which].numel() < size:
            self.memory[which] = self.memory[which].new_empty(size)
        return self.memory[which][:size].view(*shape)

    def parts(self, shape: Sequence[int]) -> Iterator[tuple[slice, slice]]:
        """Yield the (heads, rows) of each tile of [R, n, d] vectors; rows of several heads where all rows fit."""
        all_heads, all_rows = shape[0], shape[1]
        rows = max(1, min(all_rows, self.limit // max(1, all_rows)))
        heads = max(1, self.limit // max(1, all_rows * all_rows))
        for head in range(0, all_heads, heads):
            for row in range(0, all_rows, rows):
                yield slice(head, min(head + heads, all_heads)), slice(row, min(row + rows, all_rows))

    def log_softmax(self, which: int, a: Tensor, b: Tensor) -> Tensor:
        """Return log softmax_j(a_i·b_j / √d) in the tile `which`, [h, rows, n], of a [h, rows, d] and b [h, n, d]."""
        shape = (a.shape[0], a.shape[1], b.shape[1])
        scores = self.view(3, shape)
        torch.baddbmm(scores, a, b.mT, beta=0, alpha=a.shape[-1] ** -0.5, out=scores)
        return torch.log_softmax(scores, -1, out=self.view(which, shape))


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
