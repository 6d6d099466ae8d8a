"""row_losses as a Triton kernel, with one program per row.

One pass normalizes both distributions, and one computes losses and gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# The logits processed at once, and the warps per row. Memory is the limit: one row fills a
# multiprocessor, so the second pass, which runs backwards, finds in the GPU's cache some of what
# the first has read.
BLOCK, WARPS = 8192, 16


@triton.jit
def _logits(products_at, bias_at, at, inside, biased: tl.constexpr, last: tl.constexpr):
    """Return fp32 logits at the columns `at` of a row, −∞ outside; `last` lets the GPU's cache drop them after that."""
    x = tl.load(products_at + at, inside, float("-inf"), eviction_policy="evict_first" if last else "").to(tl.float32)
    if biased:
        x += tl.load(bias_at + at, inside, 0.0).to(tl.float32)
    return x


@triton.jit
def _kernel(
    z_at,
    t_at,
    bias_at,
    t_bias_at,
    target_at,
    kl_mask_at,
    mlm_mask_at,
    grad_at,
    kl_at,
    mlm_at,
    kl_factor_at,
    mlm_factor_at,
    width,
    z_row,
    t_row,
    grad_row,
    temperature,
    taught: tl.constexpr,
    masked: tl.constexpr,
    biased: tl.constexpr,
    t_biased: tl.constexpr,
    wanted: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_at += row * z_row
    t_at += row * t_row
    grad_at += row * grad_row
    columns = tl.arange(0, block)
    log2_e = 1.4426950408889634  # log₂ e: exponentials and logarithms are in base 2, as in the hardware
    soft = log2_e / temperature
    counts = False
    if masked:
        counts = tl.load(mlm_mask_at + row) != 0
    lowest = float("-inf")
    peak, t_peak = tl.full((), lowest, tl.float32), tl.full((), lowest, tl.float32)
    total, soft_total, t_total = tl.zeros((), tl.float32), tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, width, block):
        at = start + columns
        inside = at < width
        z = _logits(z_at, bias_at, at, inside, biased, False)
        new = tl.maximum(peak, tl.max(z, 0))
        if counts:  # some 15 % of the rows
            total = total * tl.exp2((peak - new) * log2_e) + tl.sum(tl.exp2((z - new) * log2_e), 0)
        if taught:
            soft_total = soft_total * tl.exp2((peak - new) * soft) + tl.sum(tl.exp2((z - new) * soft), 0)
            t = _logits(t_at, t_bias_at, at, inside, t_biased, False)
            t_new = tl.maximum(t_peak, tl.max(t, 0))
            t_total = t_total * tl.exp2((t_peak - t_new) * soft) + tl.sum(tl.exp2((t - t_new) * soft), 0)
            t_peak = t_new
        peak = new
    label_factor = tl.zeros((), tl.float32)
    if masked:
        target = tl.load(target_at + row)
        hit = tl.load(z_at + target).to(tl.float32)
        if biased:
            hit += tl.load(bias_at + target).to(tl.float32)
        mlm = tl.zeros((), tl.float32)
        if counts:
            mlm = peak + tl.log(total) - hit
            label_factor = tl.load(mlm_factor_at) / total
        tl.store(mlm_at + row, mlm)
    has_kl = tl.load(kl_mask_at + row) != 0
    factor = tl.load(kl_factor_at)
    log_sum, t_log_sum = tl.log2(soft_total), tl.log2(t_total)
    kl = tl.zeros((block,), tl.float32)
    tl.debug_barrier()  # the gradient may overwrite z: every warp must have read the target's logit
    end = (width - 1) // block * block
    for start in range(0, width, block):
        at = end - start + columns
        inside = at < width
        z = _logits(z_at, bias_at, at, inside, biased, True)
        grad_logit = tl.zeros((block,), tl.float32)
        if taught:
            t = _logits(t_at, t_bias_at, at, inside, t_biased, True)
            log_q, log_p = (z - peak) * soft - log_sum, (t - t_peak) * soft - t_log_sum
            p, q = tl.exp2(log_p), tl.exp2(log_q)
            # Σ (q − p) is 0 but for the rounding of the two normalizers
            kl += tl.where(inside, p * ((log_p - log_q) / log2_e) + (q - p), 0.0)
            if wanted:
                grad_logit = tl.where(has_kl, factor * (q - p), 0.0)
        if wanted:
            if counts:
                grad_logit += label_factor * tl.exp2((z - peak) * log2_e)
            tl.store(grad_at + at, grad_logit.to(grad_at.dtype.element_ty), inside, cache_modifier=".cs")
    if taught:
        tl.store(kl_at + row, tl.where(has_kl, temperature * temperature * tl.sum(kl, 0), 0.0))


def triton_row_losses(
    z: Tensor,
    t: Tensor | None,
    bias: Tensor | None,
    t_bias: Tensor | None,
    target: Tensor,
    kl_mask: Tensor,
    mlm_mask: Tensor | None,
    kl_factor: Tensor,
    mlm_factor: Tensor,
    temperature: float,
    grad_logit: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute row_losses for fp32 or 16-bit logits, with sums and exponentials in fp32.

    The gradient may overwrite z, because a row's pass reads each value before it overwrites it.
    """
    n, width = z.shape
    kl = None if t is None else z.new_empty(n, 1, dtype=torch.float32)
    mlm = None if mlm_mask is None else z.new_empty(n, 1, dtype=torch.float32)
    some = z  # a placeholder for absent tensors, which the kernel does not touch
    _kernel[(n,)](
        z,
        some if t is None else t,
        some if bias is None else bias,
        some if t_bias is None else t_bias,
        target,
        kl_mask.contiguous().view(torch.uint8),
        (kl_mask if mlm_mask is None else mlm_mask).contiguous().view(torch.uint8),
        some if grad_logit is None else grad_logit,
        some if kl is None else kl,
        some if mlm is None else mlm,
        kl_factor,
        mlm_factor,
        width,
        z.stride(0),
        0 if t is None else t.stride(0),
        0 if grad_logit is None else grad_logit.stride(0),
        temperature,
        taught=t is not None,
        masked=mlm is not None,
        biased=bias is not None,
        t_biased=t_bias is not None,
        wanted=grad_logit is not None,
        block=min(BLOCK, triton.next_power_of_2(width)),
        num_warps=WARPS,
    )
    return kl, mlm
