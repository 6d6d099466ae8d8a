"""The losses of `ds_distill.kernels.relations` as Triton kernels, tile by tile.

A first pass normalizes each row of scores. A second one computes the scores again, and from them the loss and the
gradient. Nothing is kept but one number per row.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tokens of a tile on either side, by the width of the vectors up to which they fit a multiprocessor.
BLOCKS = {64: (64, 64), 128: (64, 32), 256: (32, 32)}
WARPS, STAGES = 4, 2
PADDING = torch.iinfo(torch.int64).min  # the document number of padding


@triton.jit
def _vectors(at, tokens, inside, token_stride, width, block_width: tl.constexpr):
    """Return the vectors of `tokens`, [tokens, block_width], 0 outside."""
    columns = tl.arange(0, block_width)
    places = tokens.to(tl.int64)[:, None] * token_stride + columns[None, :]
    return tl.load(at + places, inside[:, None] & (columns < width)[None, :], 0.0)


@triton.jit
def _scores(x, y, scale, interpreted: tl.constexpr):
    if interpreted:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, tl.trans(y), input_precision="ieee") * scale


@triton.jit
def _place(length, block_rows: tl.constexpr):
    """Return (the pair of sequence and head, the block of rows) of a program. A second axis could be too short."""
    blocks = tl.cdiv(length, block_rows)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks


@triton.jit
def _documents(documents_at, tokens, length, padding):
    return tl.load(documents_at + tokens, tokens < length, padding)


@triton.jit
def _normalizer_kernel(
    x_at,
    y_at,
    documents_at,
    normalizer_at,
    length,
    heads,
    width,
    x_sequence,
    x_head,
    x_token,
    y_sequence,
    y_head,
    y_token,
    scale,
    padding,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_width: tl.constexpr,
    interpreted: tl.constexpr,
):
    """Store log Σ_j exp(x_i·y_j · scale) for a block of rows i; 0 for padding."""
    pair, block = _place(length, block_rows)
    sequence, head = pair // heads, pair % heads
    x_at += sequence * x_sequence + head * x_head
    y_at += sequence * y_sequence + head * y_head
    documents_at += sequence * length
    rows = block * block_rows + tl.arange(0, block_rows)
    row_documents = _documents(documents_at, rows, length, padding)
    x = _vectors(x_at, rows, row_documents != padding, x_token, width, block_width)
    peak = tl.full((block_rows,), float("-inf"), tl.float32)
    total = tl.zeros((block_rows,), tl.float32)
    for start in range(0, length, block_columns):
        columns = start + tl.arange(0, block_columns)
        column_documents = _documents(documents_at, columns, length, padding)
        seen = (row_documents[:, None] == column_documents[None, :]) & (row_documents != padding)[:, None]
        if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:  # a tile without a document on both sides costs nothing
            y = _vectors(y_at, columns, column_documents != padding, y_token, width, block_width)
            s = tl.where(seen, _scores(x, y, scale, interpreted), float("-inf"))
            new = tl.maximum(peak, tl.max(s, 1))
            shift = tl.where(new == float("-inf"), 0.0, new)
            total = total * tl.exp(peak - shift) + tl.sum(tl.exp(s - shift[:, None]), 1)
            peak = new
    normalizer = tl.where(total > 0, peak + tl.log(total), 0.0)
    tl.store(normalizer_at + pair * length + rows, normalizer, rows < length)


@triton.jit
def _gradient_kernel(
    x_at,
    y_at,
    t_x_at,
    t_y_at,
    documents_at,
    normalizer_at,
    t_normalizer_at,
    weights_at,
    t_scales_at,
    shares_at,
    d_at,
    loss_at,
    length,
    heads,
    width,
    t_width,
    x_sequence,
    x_head,
    x_token,
    y_sequence,
    y_head,
    y_token,
    t_x_teacher,
    t_x_sequence,
    t_x_head,
    t_x_token,
    t_y_teacher,
    t_y_sequence,
    t_y_head,
    t_y_token,
    scale,
    padding,
    teachers: tl.constexpr,
    squared: tl.constexpr,
    per_token: tl.constexpr,
    by_rows: tl.constexpr,
    by_columns: tl.constexpr,
    wanted: tl.constexpr,
    block_rows: tl.constexpr,
    block_columns: tl.constexpr,
    block_width: tl.constexpr,
    t_block_width: tl.constexpr,
    interpreted: tl.constexpr,
):
    """Store the loss of a block of rows and its gradient in x.

    With `by_rows`, the x_i are the rows of the scores, each row a distribution. With `by_columns`, they are
    the columns. With both, the scores are symmetric, and x is both sides of them. `squared` is the loss of
    plain_score_error; with `per_token`, it is multiplied by the share of each token, which all tokens that see each
    other have in common.
    """
    pair, block = _place(length, block_rows)
    sequence, head = pair // heads, pair % heads
    x_at += sequence * x_sequence + head * x_head
    y_at += sequence * y_sequence + head * y_head
    t_x_at += sequence * t_x_sequence + head * t_x_head
    t_y_at += sequence * t_y_sequence + head * t_y_head
    documents_at += sequence * length
    rows = block * block_rows + tl.arange(0, block_rows)
    row_documents = _documents(documents_at, rows, length, padding)
    real_rows = row_documents != padding
    x = _vectors(x_at, rows, real_rows, x_token, width, block_width)
    of_pair = pair * length
    pairs = tl.num_programs(0).to(tl.int64) // tl.cdiv(length, block_rows)
    of_teacher = pairs * length  # from one teacher's normalizers to the next one's
    d = tl.zeros((block_rows, block_width), tl.float32)
    loss = tl.zeros((block_rows,), tl.float32)
    for start in range(0, length, block_columns):
        columns = start + tl.arange(0, block_columns)
        column_documents = _documents(documents_at, columns, length, padding)
        real_columns = column_documents != padding
        seen = (row_documents[:, None] == column_documents[None, :]) & real_rows[:, None]
        if tl.max(tl.max(seen.to(tl.int32), 1), 0) > 0:
            y = _vectors(y_at, columns, real_columns, y_token, width, block_width)
            s = _scores(x, y, scale, interpreted)
            log_p = tl.zeros((block_rows, block_columns), tl.float32)
            row_p = tl.zeros((block_rows, block_columns), tl.float32)
            column_p = tl.zeros((block_rows, block_columns), tl.float32)
            t = tl.zeros((block_rows, block_columns), tl.float32)
            for k in tl.static_range(teachers):
                t_x = _vectors(t_x_at + k * t_x_teacher, rows, real_rows, t_x_token, t_width, t_block_width)
                t_y = _vectors(t_y_at + k * t_y_teacher, columns, real_columns, t_y_token, t_width, t_block_width)
                t = _scores(t_x, t_y, tl.load(t_scales_at + k), interpreted)
                if not squared:
                    weight = tl.load(weights_at + k)
                    normalizers = t_normalizer_at + k * of_teacher + of_pair
                    if by_rows:
                        log_p = t - tl.load(normalizers + rows, real_rows, 0.0)[:, None]
                        row_p += weight * tl.exp(log_p)
                    if by_columns:
                        column_p += weight * tl.exp(t - tl.load(normalizers + columns, real_columns, 0.0)[None, :])
            gradient = tl.zeros((block_rows, block_columns), tl.float32)
            if squared:
                error = tl.where(seen, s - t, 0.0)
                loss += tl.sum(error * error, 1)
                gradient = error * 4.0 if by_rows and by_columns else error * 2.0
                if per_token:
                    gradient *= tl.load(shares_at + sequence * length + rows, rows < length, 0.0)[:, None]
            if by_rows and not squared:
                log_q = s - tl.load(normalizer_at + of_pair + rows, real_rows, 0.0)[:, None]
                row_gradient = tl.exp(log_q) - row_p
                if teachers > 1:
                    log_p = tl.log(tl.maximum(row_p, 1.1754944e-38))
                # Σ (q − p) is 0 but for the rounding of the normalizers
                loss += tl.sum(tl.where(seen, row_p * (log_p - log_q) + row_gradient, 0.0), 1)
                gradient += tl.where(seen, row_gradient, 0.0)
            if by_columns and not squared:
                q = tl.exp(s - tl.load(normalizer_at + of_pair + columns, real_columns, 0.0)[None, :])
                gradient += tl.where(seen, q - column_p, 0.0)
            if wanted:
                if y.dtype == tl.bfloat16 and not interpreted:
                    d = tl.dot(gradient.to(tl.bfloat16), y, d)
                elif y.dtype != tl.float32:  # fp16's range is too small for a gradient
                    d = tl.dot(gradient, y.to(tl.float32), d, input_precision="tf32")
                else:
                    d = tl.dot(gradient, y, d, input_precision="ieee")
    if wanted:
        at = tl.arange(0, block_width)
        places = (of_pair + rows)[:, None] * width + at[None, :]
        tl.store(d_at + places, (d * scale).to(d_at.dtype.element_ty), (rows < length)[:, None] & (at < width)[None, :])
    if by_rows:
        if per_token:
            loss *= tl.load(shares_at + sequence * length + rows, rows < length, 0.0)
        tl.store(loss_at + tl.program_id(0), tl.sum(loss, 0))


INTERPRETED = not isinstance(_gradient_kernel, triton.JITFunction)  # Triton's interpreter has no products of bf16


def triton_relation_loss(
    student: tuple[Tensor, Tensor],
    teachers: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float] | None,
    real: Tensor | None,
    documents: Tensor | None,
    d_student: tuple[Tensor | None, Tensor | None],
    per_token: bool = False,
) -> Tensor:
    """Return the loss of plain_relation_kl, or of plain_score_error where weights is None, and write its gradient.

    The tensors are fp32 or 16-bit, of widths up to 256; the other arguments are those of
    fused_relation_kl, and `d_student` is contiguous.
    """
    a, b = _contiguous_vectors(student)
    t_a, t_b = _stacked(teachers)
    sequences, heads, length, width = a.shape
    if a.numel() == 0:
        return torch.zeros((), device=a.device)
    symmetric = a is b and t_a is t_b
    blocks = next(sizes for widest, sizes in BLOCKS.items() if max(width, t_a.shape[-1]) <= widest)
    grid = (triton.cdiv(length, blocks[0]) * sequences * heads,)
    numbers = torch.zeros(sequences, length, dtype=torch.int64, device=a.device)
    numbers = numbers if documents is None else documents.long()
    numbers = (numbers if real is None else numbers.masked_fill(~real, PADDING)).contiguous()
    t_scales = [teacher[0].shape[-1] ** -0.5 for teacher in teachers]
    normalizer = a.new_empty(sequences * heads * length, dtype=torch.float32)
    t_normalizer = a.new_empty(len(teachers), sequences * heads * length, dtype=torch.float32)
    if weights is not None:
        pairs = [(a, b, normalizer, width**-0.5)]
        pairs += [(t_a[k], t_b[k], t_normalizer[k], t_scales[k]) for k in range(len(teachers))]
        for x, y, out, scale in pairs:
            _normalizer_kernel[grid](
                x,
                y,
                numbers,
                out,
                length,
                heads,
                x.shape[-1],
                *x.stride()[:3],
                *y.stride()[:3],
                scale,
                PADDING,
                block_rows=blocks[0],
                block_columns=blocks[1],
                block_width=_padded(x.shape[-1]),
                interpreted=INTERPRETED,
                num_warps=WARPS,
                num_stages=STAGES,
            )
    losses = normalizer.new_zeros(grid[0])
    shares = _seen(numbers).float().reciprocal_() if per_token else losses  # a placeholder, as below
    # filled, not copied: a copy would make a GPU wait
    on_device = [torch.cat([losses.new_full((1,), x) for x in values]) for values in (weights or [1.0], t_scales)]

    def launch(x, y, t_x, t_y, d: Tensor | None, by_rows: bool, by_columns: bool) -> None:
        _gradient_kernel[grid](
            x,
            y,
            t_x,
            t_y,
            numbers,
            normalizer,
            t_normalizer,
            *on_device,
            shares,
            normalizer if d is None else d,  # a placeholder, which the kernel does not touch
            losses,
            length,
            heads,
            width,
            t_x.shape[-1],
            *x.stride()[:3],
            *y.stride()[:3],
            *t_x.stride()[:4],
            *t_y.stride()[:4],
            width**-0.5,
            PADDING,
            teachers=len(teachers),
            squared=weights is None,
            per_token=per_token,
            by_rows=by_rows,
            by_columns=by_columns,
            wanted=d is not None,
            block_rows=blocks[0],
            block_columns=blocks[1],
            block_width=_padded(width),
            t_block_width=_padded(t_x.shape[-1]),
            interpreted=INTERPRETED,
            num_warps=WARPS,
            num_stages=STAGES,
        )

    d_a, d_b = d_student
    launch(a, b, t_a, t_b, d_a, by_rows=True, by_columns=symmetric)
    if d_b is not None and not symmetric:
        out = torch.empty_like(d_b) if d_b is d_a else d_b
        launch(b, a, t_b, t_a, out, by_rows=False, by_columns=True)
        if out is not d_b:
            d_b += out
    return losses.sum()


def _seen(numbers: Tensor) -> Tensor:
    """Return how many tokens of its sequence have the number of each token [B, L], itself among them."""
    ordered = numbers.sort(-1).values
    return torch.searchsorted(ordered, numbers, right=True) - torch.searchsorted(ordered, numbers)


def _contiguous_vectors(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the pair in one dtype, each vector contiguous; one tensor where the pair is one tensor."""
    dtype = torch.promote_types(pair[0].dtype, pair[1].dtype)
    a, b = (x.to(dtype) for x in pair) if pair[0] is not pair[1] else (pair[0], pair[0])
    a_in_place = a if a.stride(-1) == 1 else a.contiguous()
    return a_in_place, a_in_place if b is a else (b if b.stride(-1) == 1 else b.contiguous())


def _stacked(teachers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the teachers' a and b, each [K, B, R, L, d]; padded copies where there are several."""
    pairs = [_contiguous_vectors(teacher) for teacher in teachers]
    if len(pairs) == 1:
        a, b = pairs[0]
        a_view = a.unsqueeze(0)
        return a_view, a_view if b is a else b.unsqueeze(0)
    widest = max(a.shape[-1] for a, _ in pairs)
    dtypes = {x.dtype for pair in pairs for x in pair}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

    def stack(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(x.to(dtype), (0, widest - x.shape[-1])) for x in tensors])

    a = stack([a for a, _ in pairs])
    return a, a if all(x is y for x, y in pairs) else stack([b for _, b in pairs])


def _padded(width: int) -> int:
    """Return the width of a tile: a power of 2, and 16 at least, as Triton's matrix products need."""
    return max(16, triton.next_power_of_2(width))
