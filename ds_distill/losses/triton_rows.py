"""row_losses as a Triton kernel: a program a row, one pass to normalise both distributions, one for losses and gradient."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits at once


@triton.jit
def _logits(products_at, bias_at, at, inside, biased: tl.constexpr):
    """fp32 logits at the columns `at` of a row, −∞ where not inside."""
    x = tl.load(products_at + at, inside, float("-inf")).to(tl.float32)
    if biased:
        x += tl.load(bias_at + at, inside, 0.0)
    return x


@triton.jit
def _kernel(z_at, t_at, bias_at, t_bias_at, target_at, kl_mask_at, mlm_mask_at, slope_at, kl_at, mlm_at, kl_factor_at, mlm_factor_at,
            vocabulary, z_row, t_row, slope_row, temperature,
            taught: tl.constexpr, masked: tl.constexpr, biased: tl.constexpr, t_biased: tl.constexpr, wanted: tl.constexpr,
            block: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block)
    low = float("-inf")
    peak, t_peak = tl.full((), low, tl.float32), tl.full((), low, tl.float32)
    total, soft_total, t_total = tl.zeros((), tl.float32), tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, vocabulary, block):
        at = start + columns
        inside = at < vocabulary
        z = _logits(z_at + row * z_row, bias_at, at, inside, biased)
        new = tl.maximum(peak, tl.max(z, 0))
        if masked:
            total = total * tl.exp(peak - new) + tl.sum(tl.exp(z - new), 0)
        if taught:
            soft_total = soft_total * tl.exp((peak - new) / temperature) + tl.sum(tl.exp((z - new) / temperature), 0)
            t = _logits(t_at + row * t_row, t_bias_at, at, inside, t_biased)
            t_new = tl.maximum(t_peak, tl.max(t, 0))
            t_total = t_total * tl.exp((t_peak - t_new) / temperature) + tl.sum(tl.exp((t - t_new) / temperature), 0)
            t_peak = t_new
        peak = new
    if masked:
        target = tl.load(target_at + row)
        hit = tl.load(z_at + row * z_row + target).to(tl.float32)
        if biased:
            hit += tl.load(bias_at + target)
        counts = tl.load(mlm_mask_at + row) != 0
        tl.store(mlm_at + row, tl.where(counts, peak + tl.log(total) - hit, 0.0))
    kl = tl.zeros((), tl.float32)
    for start in range(0, vocabulary, block):
        at = start + columns
        inside = at < vocabulary
        z = _logits(z_at + row * z_row, bias_at, at, inside, biased)
        slope = tl.zeros((block,), tl.float32)
        if taught:
            t = _logits(t_at + row * t_row, t_bias_at, at, inside, t_biased)
            log_q = (z - peak) / temperature - tl.log(soft_total)
            log_p = (t - t_peak) / temperature - tl.log(t_total)
            p, q = tl.exp(log_p), tl.exp(log_q)
            # Σ (q − p) is 0, but for the rounding of the two normalisers
            kl += tl.sum(tl.where(inside, p * (log_p - log_q) + (q - p), 0.0), 0)
            if wanted:
                slope = tl.where(tl.load(kl_mask_at + row) != 0, tl.load(kl_factor_at) * (q - p), 0.0)
        if wanted:
            if masked:
                own = tl.load(mlm_factor_at) * tl.exp(z - peak) / total
                slope += tl.where(tl.load(mlm_mask_at + row) != 0, own, 0.0)
            tl.store(slope_at + row * slope_row + at, slope.to(slope_at.dtype.element_ty), inside)
    if taught:
        tl.store(kl_at + row, tl.where(tl.load(kl_mask_at + row) != 0, temperature * temperature * kl, 0.0))


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
    slope: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """As rows.row_losses, of fp32 or 16-bit logits; sums and exponentials in fp32. slope may be z: a row's pass reads what it then overwrites."""
    n, vocabulary = z.shape
    kl = None if t is None else z.new_empty(n, 1, dtype=torch.float32)
    mlm = None if mlm_mask is None else z.new_empty(n, 1, dtype=torch.float32)
    some = z  # in the place of what is absent, and not touched
    _kernel[(n,)](
        z, some if t is None else t, some if bias is None else bias, some if t_bias is None else t_bias, target,
        kl_mask.contiguous().view(torch.uint8), (kl_mask if mlm_mask is None else mlm_mask).contiguous().view(torch.uint8),
        some if slope is None else slope, some if kl is None else kl, some if mlm is None else mlm, kl_factor, mlm_factor,
        vocabulary, z.stride(0), 0 if t is None else t.stride(0), 0 if slope is None else slope.stride(0), temperature,
        taught=t is not None, masked=mlm is not None, biased=bias is not None, t_biased=t_bias is not None, wanted=slope is not None,
        block=min(BLOCK, triton.next_power_of_2(vocabulary)), num_warps=8,
    )  # fmt: skip
    return kl, mlm
