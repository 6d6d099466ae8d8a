"""The vocabulary projection and its losses as one operation.

At a 30 k vocabulary the logits of a batch are larger than everything else in the step together.
Here they never exist beyond one chunk. The forward pass finishes each chunk's losses and gradients
while the chunk is in memory.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ds_distill.kernels.row_losses import TEMPORARIES, get_row_losses

# Large chunks beat small ones at a 30 k vocabulary, because the GEMMs stay near their peak. A GPU
# also reads and writes the weight's gradient once per chunk.
LIVE_BYTES = {"cpu": 240 * 2**20, "cuda": 768 * 2**20}
# The logits of one call of row_losses. A CPU finds them in its cache again, and a GPU needs many to
# be busy.
BLOCK = {"cpu": 2**21, "cuda": 2**25}
# The bias of a column that is no token; -1e30 for other dtypes. It leaves the column no
# probability, and it is finite, so that 0 times its logit is 0.
PAD_LOGIT_BIAS = {torch.float16: -65504.0}
TILE = 128  # rows
# On a CPU, by model: the memory of the logits, kept from one step to the next. Fresh pages for it
# cost as much as a pass over them.
_kept = threading.local()


def fused_linear_distillation_loss(
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
    kl_tokens: str = "all",
    token_mask: Tensor | None = None,
    chunk: int | None = None,
    backend: str = "torch",
) -> tuple[Tensor, Tensor, Tensor]:
    """Project both hidden states on the vocabulary, and return the weighted loss and its two sums.

    Args:
        student_hidden: [N, H_student]. Widths and dtypes of student and teacher may differ.
        student_weight: [V, H_student].
        student_bias: [V] or None.
        teacher_hidden: [N, H_teacher]. May be None if kl_weight is 0.
        teacher_weight: [V, H_teacher]. May be None if kl_weight is 0.
        teacher_bias: [V] or None.
        labels: [N] int64, −100 where a token is not masked.
        temperature: T in the formula below.
        kl_weight: The factor of kl_sum.
        mlm_weight: The factor of mlm_sum.
        kl_tokens: "all" (every real token) or "masked" (a different objective).
        token_mask: [N] bool, False for padding.
        chunk: How many rows of logits exist at a time. None chooses by memory.
        backend: What computes the passes over the logits: torch's operators ("torch"), one
            "compiled" kernel (it takes seconds, once per machine) or, on a GPU, the "triton"
            kernel.

    Returns:
        (loss, kl_sum, mlm_sum), scalars in fp32 (float64 for float64 inputs), in nats, summed over
        tokens:

            loss = kl_weight · kl_sum + mlm_weight · mlm_sum
            kl_sum = Σ T² · KL(softmax(t/T) ‖ softmax(z/T))
            mlm_sum = Σ −log softmax(z)_y

        The loss is differentiable once, in student hidden, weight and bias. The sums are detached.

    Raises:
        ValueError: Shapes do not fit, or kl_tokens is unknown.

    Source: Hinton et al. 2015, section 2.1; Sanh et al. 2019, section 2.
    """
    rows, vocabulary = student_hidden.shape[0], student_weight.shape[0]
    if kl_tokens not in ("all", "masked"):
        raise ValueError(f'kl_tokens = {kl_tokens!r}: "all" or "masked"')
    if labels.shape != (rows,):
        raise ValueError(f"labels {tuple(labels.shape)}: student_hidden has {rows} rows")
    if kl_weight != 0:
        if teacher_hidden is None or teacher_weight is None:
            raise ValueError(f"kl_weight = {kl_weight} needs teacher_hidden and teacher_weight")
        if teacher_hidden.shape[0] != rows or teacher_weight.shape[0] != vocabulary:
            raise ValueError(
                f"teacher [{teacher_hidden.shape[0]} rows, {teacher_weight.shape[0]} tokens] against student "
                f"[{rows}, {vocabulary}]"
            )
    inputs = (student_hidden, student_weight, student_bias)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if student_hidden.device.type == "cpu" and (kl_weight == 0 or kl_tokens == "masked"):
        # Only masked rows count. Selecting them makes a GPU synchronize and costs a CPU nothing.
        at = (labels >= 0 if token_mask is None else (labels >= 0) & token_mask).nonzero().squeeze(1)
        inputs = (student_hidden[at], *inputs[1:])
        teacher_hidden = teacher_hidden[at] if teacher_hidden is not None else None
        labels, token_mask = labels[at], None
    if chunk is None:
        chunk = _chunk(rows, vocabulary, student_hidden.element_size(), student_hidden.device.type)
    teacher = (teacher_hidden, teacher_weight, teacher_bias) if kl_weight != 0 else (None, None, None)
    settings = _Settings(float(temperature), float(kl_weight), float(mlm_weight), kl_tokens, chunk, backend, needs_grad)
    return _FusedVocabularyLoss.apply(*inputs, *teacher, labels, token_mask, settings)


def padded_vocab_size(vocabulary: int, device: str) -> int:
    """Return the number of logit columns: the vocabulary size, padded on GPUs so that each row is 16-byte aligned.

    The rows of the weight's gradient are aligned too. At 30,522 tokens a GPU's matrix products are
    then 2 to 3 times as fast as without padding (docs/benchmarks.md).
    """
    return vocabulary if device == "cpu" or vocabulary % 8 == 0 else -(-vocabulary // 64) * 64


def _row_bytes(vocabulary: int, element_size: int, device: str) -> int:
    """Return the bytes of a chunk's row: both models' logits, overwritten by the gradient unless they are wider."""
    logits = max(element_size, 4) if device == "cuda" else element_size
    return padded_vocab_size(vocabulary, device) * (2 * logits + (element_size if logits > element_size else 0))


def _chunk(rows: int, vocabulary: int, element_size: int, device: str) -> int:
    """Return how many rows of logits to hold at a time; on a GPU whole GEMM tiles, in chunks of similar length."""
    most = max(1, LIVE_BYTES[device] // _row_bytes(vocabulary, element_size, device))
    if device == "cpu" or most < TILE:
        return most
    return TILE * math.ceil(rows / math.ceil(rows / (most - most % TILE)) / TILE) if rows else TILE


def _blocks(z: Tensor, whole: bool) -> Iterator[slice]:
    rows = len(z) if whole else max(1, BLOCK[z.device.type] // z.shape[1])
    return (slice(first, first + rows) for first in range(0, len(z), rows))


def live_bytes(rows: int, vocabulary: int, element_size: int, device: str, backend: str = "torch") -> int:
    """Return the most bytes that the chunks of `rows` tokens hold at once.

    Hidden states, weights and their gradients are not counted.

    Args:
        rows: The number of tokens.
        vocabulary: The vocabulary size.
        element_size: Bytes of an element of the hidden states.
        device: The device type, "cpu" or "cuda".
        backend: As in `fused_linear_distillation_loss`.
    """
    rows = min(rows, _chunk(rows, vocabulary, element_size, device))
    temporaries = TEMPORARIES[device] if backend == "torch" else 0
    return rows * _row_bytes(vocabulary, element_size, device) + min(rows * vocabulary, BLOCK[device]) * 4 * temporaries


def release_workspace() -> None:
    """Free the logits' memory, up to LIVE_BYTES["cpu"], that this thread keeps for its next call on a CPU."""
    _kept.__dict__.clear()


def _workspace_view(model: str, rows: int, vocabulary: int, like: Tensor) -> Tensor:
    """Return memory of shape [rows, vocabulary] in like's dtype, with arbitrary contents."""
    flat = getattr(_kept, model, None)
    if flat is None or flat.dtype != like.dtype or flat.numel() < rows * vocabulary:
        setattr(_kept, model, None)  # free the old memory before the new is allocated
        with torch.inference_mode(False):  # else memory from an evaluation could not serve the next training step
            flat = like.new_empty(rows * vocabulary)
        setattr(_kept, model, flat)
    return flat[: rows * vocabulary].view(rows, vocabulary)


class _Logits:
    """hidden [N, H] · weightᵀ [H, V] chunk by chunk, without the bias, as [n, columns].

    Logits are fp32 from 16-bit inputs on a GPU, and in the inputs' own dtype on a CPU. torch's CPU
    GEMM cannot return fp32 from bf16 inputs at bf16's speed. Rounded logits put 1 % of noise into
    the gradient at |z| = 20 (docs/benchmarks.md).

    Attributes:
        bias: The bias that is to be added to the logits. It is at least fp32 on a CPU and as given
            on a GPU; None where there is nothing to add.
    """

    def __init__(
        self, model: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, acc_dtype: torch.dtype, chunk: int
    ) -> None:
        same, vocabulary = hidden.dtype == weight.dtype, len(weight)
        padding_columns = padded_vocab_size(vocabulary, hidden.device.type) - vocabulary
        self.bias = bias if bias is None or hidden.is_cuda else bias.to(acc_dtype)
        if padding_columns:
            weight = torch.nn.functional.pad(weight, (0, 0, 0, padding_columns))
            bias = (
                weight.new_zeros(vocabulary, dtype=weight.dtype if hidden.is_cuda else acc_dtype)
                if self.bias is None
                else self.bias
            )
            self.bias = torch.nn.functional.pad(bias, (0, padding_columns), value=PAD_LOGIT_BIAS.get(bias.dtype, -1e30))
        self.hidden, self.weight = (hidden, weight) if same else (hidden.to(acc_dtype), weight.to(acc_dtype))
        self.options = {"out_dtype": acc_dtype} if hidden.is_cuda and same and hidden.dtype != acc_dtype else {}
        shape, dtype = (
            (min(chunk, len(hidden)), vocabulary + padding_columns),
            self.options.get("out_dtype", self.hidden.dtype),
        )
        self.buffer = (
            self.hidden.new_empty(shape, dtype=dtype) if hidden.is_cuda else _workspace_view(model, *shape, self.hidden)
        )

    def __call__(self, part: slice) -> Tensor:
        """Return the logits of `part`, valid until the next call."""
        hidden = self.hidden[part]
        return torch.mm(hidden, self.weight.t(), out=self.buffer[: len(hidden)], **self.options)


@dataclass(frozen=True)
class _Settings:
    """The settings of `fused_linear_distillation_loss`; `needs_grad` is whether to compute gradients."""

    temperature: float
    kl_weight: float
    mlm_weight: float
    kl_tokens: str
    chunk: int
    backend: str
    needs_grad: bool


class _FusedVocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, t_hidden, t_weight, t_bias, labels, token_mask, settings: _Settings):
        acc_dtype = torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)
        kl_sum = torch.zeros((), dtype=acc_dtype, device=hidden.device)
        mlm_sum = torch.zeros_like(kl_sum)
        in_dtype = hidden.dtype
        kl_factor, unit = settings.temperature * settings.kl_weight, 1.0
        if in_dtype == torch.float16:
            # Gradients stay unnormalized until backward knows the loss scale: 1/N inside would
            # underflow. They are in units of KL's own factor, where its gradient is q − p, unless
            # that would take the masked-LM gradient out of fp16's range.
            unit = kl_factor if abs(kl_factor) > 1e-3 * abs(settings.mlm_weight) else settings.mlm_weight or 1.0
        # filled, not copied: a copy would make a GPU wait
        factors = [kl_sum.new_full((), factor / unit) for factor in (kl_factor, settings.mlm_weight)]
        student = _Logits("student", hidden, weight, bias, acc_dtype, settings.chunk)
        teacher = None
        if settings.kl_weight != 0:
            teacher = _Logits("teacher", t_hidden, t_weight, t_bias, acc_dtype, settings.chunk)
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if settings.needs_grad else None
        d_weight: Tensor | None = None
        d_bias: Tensor | None = None
        for start in range(0, len(hidden), settings.chunk):
            part = slice(start, start + settings.chunk)
            z, t = student(part), teacher(part) if teacher else None
            grad_logits: Tensor | None = None  # free the last chunk's before another is allocated
            grad_logits = (
                None if not settings.needs_grad else z if z.dtype == in_dtype else torch.empty_like(z, dtype=in_dtype)
            )
            masked = labels[part] >= 0
            real = torch.ones_like(masked) if token_mask is None else token_mask[part].bool()
            masked, real = (masked & real).unsqueeze(1), real.unsqueeze(1)
            target = labels[part].clamp(min=0).unsqueeze(1)
            biases = student.bias, teacher.bias if teacher else None
            _add_chunk_losses((kl_sum, mlm_sum), (z, t), biases, grad_logits, target, (masked, real), factors, settings)
            if grad_logits is not None and d_hidden is not None:
                hit = target + torch.arange(
                    0, grad_logits.numel(), grad_logits.shape[1], device=target.device
                ).unsqueeze(1)
                grad_logits.put_(hit, (grad_logits.take(hit) - torch.where(masked, factors[1], 0.0)).to(in_dtype))
                torch.mm(grad_logits, student.weight.to(in_dtype), out=d_hidden[part])
                d_weight = _weight_gradient(d_weight, grad_logits, hidden[part], acc_dtype)
                if bias is not None:
                    d_bias = _bias_gradient(d_bias, grad_logits, acc_dtype)
        if settings.needs_grad:
            d_weight, d_bias = (None if d is None else d[: len(weight)] for d in (d_weight, d_bias))
            ctx.unit, ctx.dtypes = unit, (hidden.dtype, weight.dtype, bias.dtype if bias is not None else None)
            ctx.save_for_backward(
                d_hidden,
                torch.zeros_like(weight) if d_weight is None else d_weight,
                torch.zeros_like(bias) if d_bias is None and bias is not None else d_bias,
            )
        loss = settings.kl_weight * kl_sum + settings.mlm_weight * mlm_sum
        ctx.mark_non_differentiable(kl_sum, mlm_sum)
        return loss, kl_sum, mlm_sum

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, _kl, _mlm):
        scale = grad_loss * ctx.unit
        grads = [
            None if g is None else _scaled(g, scale, dtype)
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*grads, *[None] * 6)


def _add_chunk_losses(
    sums: tuple[Tensor, Tensor],
    logits: tuple[Tensor, Tensor | None],
    biases: tuple[Tensor | None, Tensor | None],
    grad_logits: Tensor | None,
    target: Tensor,
    masks: tuple[Tensor, Tensor],
    factors: list[Tensor],
    settings: _Settings,
) -> None:
    """Add a chunk's losses to `sums` (KL, masked LM), and write the gradient of its logits into `grad_logits`.

    The masked-LM gradient lacks the −1 at the target, which the caller subtracts.

    Args:
        sums: The sums so far, which are overwritten.
        logits: Of student and teacher, each [n, columns]; None without KL. The student's may be overwritten.
        biases: To be added to them, or None.
        grad_logits: [n, columns], possibly the student's logits themselves; None where no gradient is wanted.
        target: [n, 1], the original tokens; any token where `masked` is false.
        masks: (masked, real), each [n, 1] bool.
        factors: The factors of the gradients of KL and masked LM.
        settings: The settings.
    """
    (kl_sum, mlm_sum), (z, t), (masked, real) = sums, logits, masks
    row_losses = get_row_losses(settings.backend)
    # one kernel takes a whole chunk; torch's operators need several times the memory of its logits
    whole = z.is_cuda and settings.backend != "torch"
    # A CPU treats the masked rows, some 15 %, apart. A GPU would have to wait to learn which ones
    # they are.
    at = masked.squeeze(1).nonzero().squeeze(1) if z.device.type == "cpu" and t is not None else None
    z_at = None if at is None else z[at]
    for block in _blocks(z, whole):
        block_logits = z[block]
        kl, mlm = row_losses(
            block_logits,
            None if t is None else t[block],
            *biases,
            target[block],
            masked[block] if settings.kl_tokens == "masked" else real[block],
            masked[block] if at is None else None,
            *factors,
            settings.temperature,
            # the same object where possible, because torch.compile copies aliases
            None if grad_logits is None else block_logits if grad_logits is z else grad_logits[block],
        )
        kl_sum += 0.0 if kl is None else kl.sum()
        mlm_sum += 0.0 if mlm is None else mlm.sum()
    if at is None or z_at is None:
        return
    for block in _blocks(z_at, whole):
        block_logits = z_at[block]
        yes = torch.ones(len(block_logits), 1, dtype=torch.bool)
        _, mlm = row_losses(
            block_logits,
            None,
            biases[0],
            None,
            target[at[block]],
            yes,
            yes,
            *factors,
            settings.temperature,
            block_logits if settings.needs_grad else None,
        )
        mlm_sum += mlm.sum()
    if grad_logits is not None:
        grad_logits.index_add_(0, at, z_at.to(grad_logits.dtype))


def _weight_gradient(total: Tensor | None, grad_logits: Tensor, hidden: Tensor, acc_dtype: torch.dtype) -> Tensor:
    """Return total + grad_logitsᵀ · hidden, [columns, H], and overwrite total.

    The result is at least fp32 where the device's GEMM can return that, or where there are two
    chunks.
    """
    if not grad_logits.is_cuda:
        return _added(total, grad_logits.t() @ hidden, acc_dtype)
    options: dict[str, Any] = {} if grad_logits.dtype == acc_dtype else {"out_dtype": acc_dtype}
    if total is None:
        return torch.mm(grad_logits.t(), hidden, **options)
    return torch.addmm(total, grad_logits.t(), hidden, out=total, **options)


def _bias_gradient(total: Tensor | None, grad_logits: Tensor, acc_dtype: torch.dtype) -> Tensor:
    """Return total + the sum of the rows of grad_logits, [columns]."""
    if grad_logits.is_cuda:
        return _added(total, grad_logits.sum(0, dtype=acc_dtype), acc_dtype)
    # on a CPU this product is much faster than torch's sum
    return _added(total, (grad_logits.t() @ grad_logits.new_ones(len(grad_logits), 1)).squeeze(1), acc_dtype)


def _added(total: Tensor | None, addend: Tensor, acc_dtype: torch.dtype) -> Tensor:
    """Return total + addend, in `acc_dtype` as soon as there are two, and overwrite total."""
    return addend if total is None else total.to(acc_dtype).add_(addend)


def _scaled(gradient: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    if gradient.is_cuda:
        factor = scale.reshape([1] * gradient.dim())  # a 0-dim factor would be rounded to 16 bit, and overflow fp16
        return torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
    if gradient.dtype == dtype:
        return gradient if scale.item() == 1.0 else gradient * scale.item()
    out, rows = torch.empty_like(gradient, dtype=dtype), max(1, BLOCK["cpu"] * len(gradient) // gradient.numel())
    # in pieces: one product in fp32 would be as large as the gradient
    for part, into in zip(gradient.split(rows), out.split(rows), strict=True):
        into.copy_(part * scale.item())
    return out
