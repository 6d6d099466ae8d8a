"""The vocabulary projection and its losses as one operation.

At a 30 k vocabulary the logits of a batch are larger than everything else in the step together. They never exist beyond one
chunk here: each chunk's losses and gradients are finished while it is in memory, in the forward pass.
"""

import torch
from torch import Tensor

LIVE_BYTES = 256 * 2**20  # large chunks beat small ones at a 30 k vocabulary: the GEMMs stay near their peak
_BUFFERS = 4  # student and teacher logits and their softmaxes, alive at once


def fused_vocabulary_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    labels: Tensor,
    *,
    temperature: float,
    kl_weight: float,
    mlm_weight: float,
    kl_on: str = "all",
    token_mask: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Project both hidden states on the vocabulary; return the weighted loss and its two sums.

    student_hidden [N, H_student], teacher_hidden [N, H_teacher] (widths and dtypes may differ), weights [V, H], biases [V] or None,
    labels [N] int64 with −100 where not masked, token_mask [N] bool (False = padding), chunk: rows at a time (None: by memory).
    kl_on: "all" (every real token) or "masked" (a different objective). With kl_weight 0 the teacher may be None.
    Returns (loss, kl_sum, mlm_sum), scalars in fp32 (float64 for float64 inputs), in nats and summed over tokens:
    loss = kl_weight · kl_sum + mlm_weight · mlm_sum, kl_sum = Σ T² · KL(softmax(t/T) ‖ softmax(z/T)), mlm_sum = Σ −log softmax(z)_y.
    loss is differentiable once, in student hidden, weight and bias; the sums are detached.
    Raises ValueError on shapes that do not fit and on an unknown kl_on.
    Source: Hinton et al. 2015, section 2.1; Sanh et al. 2019, section 2.
    """
    rows, vocabulary = student_hidden.shape[0], student_weight.shape[0]
    if kl_on not in ("all", "masked"):
        raise ValueError(f'kl_on = {kl_on!r}: "all" or "masked"')
    if labels.shape != (rows,):
        raise ValueError(f"labels {tuple(labels.shape)}: student_hidden has {rows} rows")
    if kl_weight != 0:
        if teacher_hidden is None or teacher_weight is None:
            raise ValueError(f"kl_weight = {kl_weight} needs teacher_hidden and teacher_weight")
        if teacher_hidden.shape[0] != rows or teacher_weight.shape[0] != vocabulary:
            raise ValueError(
                f"teacher [{teacher_hidden.shape[0]} rows, {teacher_weight.shape[0]} tokens] against student [{rows}, {vocabulary}]"
            )
    inputs = (student_hidden, student_weight, student_bias)
    want = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if student_hidden.device.type == "cpu" and (kl_weight == 0 or kl_on == "masked"):
        # only masked rows count; choosing them costs a GPU a synchronisation, a CPU nothing
        at = (labels >= 0 if token_mask is None else (labels >= 0) & token_mask).nonzero().squeeze(1)
        inputs = (student_hidden[at], *inputs[1:])
        teacher_hidden = teacher_hidden[at] if teacher_hidden is not None else None
        labels, token_mask = labels[at], None
    if chunk is None:
        chunk = _chunk(vocabulary)
    teacher = (teacher_hidden, teacher_weight, teacher_bias) if kl_weight != 0 else (None, None, None)
    return _FusedVocabularyLoss.apply(
        *inputs, *teacher, labels, token_mask, float(temperature), float(kl_weight), float(mlm_weight), kl_on, chunk, want
    )


def _chunk(vocabulary: int) -> int:
    return max(1, LIVE_BYTES // (vocabulary * 4 * _BUFFERS))


def live_bytes(rows: int, vocabulary: int) -> int:
    """The most bytes that the chunks of `rows` tokens hold at once, beside the gradients of hidden states and weights."""
    return min(rows, _chunk(vocabulary)) * vocabulary * 4 * _BUFFERS


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, wide: torch.dtype, temperature: float) -> Tensor:
    """[n, V], logits / temperature, in at least fp32. A 16-bit result would carry 0.06 of error at |z| = 30, more than the gradient's tolerance."""
    if hidden.is_cuda and hidden.dtype == weight.dtype != wide:
        logits = torch.mm(hidden, weight.t(), out_dtype=wide).div_(temperature)
        return logits if bias is None else logits.add_(bias.to(wide) / temperature)
    # dividing the short side spares a pass over the logits
    hidden, weight = hidden.to(wide) / temperature, weight.to(wide)
    return hidden @ weight.t() if bias is None else torch.addmm(bias.to(wide) / temperature, hidden, weight.t())


class _FusedVocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden, weight, bias, t_hidden, t_weight, t_bias, labels, token_mask, temperature, kl_weight, mlm_weight, kl_on, chunk, want
    ):
        wide = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        kl_sum = torch.zeros((), dtype=wide, device=hidden.device)
        mlm_sum = torch.zeros_like(kl_sum)
        # gradients stay unnormalised until backward knows the loss scale: 1/N inside would underflow in fp16.
        # In units of KL's own factor its gradient is q − p, a pass less; not where masked-LM's would then leave fp16's range.
        kl_factor = temperature * kl_weight
        unit = kl_factor if abs(kl_factor) > 1e-3 * abs(mlm_weight) else mlm_weight or 1.0
        d_hidden = torch.empty(hidden.shape, dtype=wide, device=hidden.device) if want else None
        d_weight = torch.zeros(weight.shape, dtype=wide, device=hidden.device) if want else None
        d_bias = torch.zeros(weight.shape[0], dtype=wide, device=hidden.device) if want and bias is not None else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            masked = labels[part] >= 0
            real = torch.ones_like(masked) if token_mask is None else token_mask[part].bool()
            masked = masked & real
            kl_rows = (masked if kl_on == "masked" else real).to(wide).unsqueeze(1)
            scale_rows = token_mask is not None or kl_on == "masked" or unit != kl_factor
            mlm_rows = masked.to(wide).unsqueeze(1)
            target = labels[part].clamp(min=0).unsqueeze(1)
            z = _logits(hidden[part], weight, bias, wide, temperature)
            grad = None
            if kl_weight != 0:
                log_p = _logits(t_hidden[part], t_weight, t_bias, wide, temperature).log_softmax(-1)
                log_q = z.log_softmax(-1)
                p = log_p.exp()
                # where, not a product: a padded row may hold anything, and 0 · inf is nan
                row_kl = (log_p.sub_(log_q).mul_(p)).sum(-1, keepdim=True)
                kl_sum += temperature**2 * torch.where(kl_rows > 0, row_kl, 0.0).sum()
                if want:
                    grad = log_q.exp_().sub_(p)
                    if scale_rows:
                        grad.mul_(kl_rows * (kl_factor / unit))
            at = masked.nonzero().squeeze(1) if z.device.type == "cpu" else None
            if at is not None:
                target, mlm_rows = target[at], mlm_rows[at]
            log_z = ((z if at is None else z[at]) * temperature).log_softmax(-1)
            mlm_sum -= torch.where(mlm_rows > 0, log_z.gather(1, target), 0.0).sum()
            if want:
                if grad is None:
                    grad = torch.zeros_like(z)
                if mlm_weight != 0:
                    factor = mlm_rows * (mlm_weight / unit)
                    d_mlm = log_z.exp_().scatter_add_(1, target, torch.full_like(mlm_rows, -1.0)).mul_(factor)
                    grad = grad.add_(d_mlm) if at is None else grad.index_add_(0, at, d_mlm)
                low = grad.to(hidden.dtype)
                d_hidden[part] = low @ weight.to(low.dtype)
                if low.dtype == wide:
                    d_weight.addmm_(low.t(), hidden[part])
                elif low.is_cuda:
                    d_weight += torch.mm(low.t(), hidden[part], out_dtype=wide)
                else:
                    d_weight += low.t() @ hidden[part]
                if d_bias is not None:
                    d_bias += grad.sum(0)
        if want:
            ctx.unit, ctx.dtypes = unit, (hidden.dtype, weight.dtype, bias.dtype if bias is not None else None)
            ctx.save_for_backward(d_hidden, d_weight, d_bias)
        loss = kl_weight * kl_sum + mlm_weight * mlm_sum
        ctx.mark_non_differentiable(kl_sum, mlm_sum)
        return loss, kl_sum, mlm_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, _kl, _mlm):
        scale = grad_loss * ctx.unit
        grads = [None if g is None else (g * scale).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]
        return (*grads, *[None] * 11)
