"""What lies between the logits' matrix products: losses and gradients of a block of rows, to be compiled into one kernel."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

TEMPORARIES = 5  # [n, V] tensors alive at once, on torch's own operators; compiled there are none


def row_losses(
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
    """Losses of n rows of logits; writes the gradient in the student's logits, all but the masked-LM target's −1, into `slope`.

    z, t [n, V] the student's and teacher's products without biases (t None: no KL; mlm_mask None: no masked-LM); biases [V]; target [n, 1] int64;
    kl_mask, mlm_mask [n, 1] bool, the rows that count; biases and factors (scalars on the device, the gradients' units) at least fp32.
    slope [n, V] becomes kl_factor · (q − p) + mlm_factor · softmax(z); it may be z itself, and is None where no gradient is wanted.
    Returns (kl [n, 1], T² · KL(softmax(t/T) ‖ softmax(z/T)); mlm [n, 1], −log softmax(z)_target), 0 where masked out, None where left out.
    """
    wide = mlm_factor.dtype
    z = _peak_removed(z.to(wide) if bias is None else z + bias)
    kl = mlm = total = None
    log_q = None if t is None else z / temperature
    if mlm_mask is not None:
        log_z = _normalise_(z)
        # where, not a product: a padded row may hold anything, and 0 · inf is nan
        mlm = torch.where(mlm_mask, -log_z.gather(1, target), 0.0)
    if t is not None:
        log_q = _normalise_(log_q)
        log_p = _normalise_(_peak_removed(t.to(wide) if t_bias is None else t + t_bias).div_(temperature))
        p = log_p.exp()
        log_p.sub_(log_q).mul_(p)
        difference = log_q.exp_().sub_(p)
        # Σ (q − p) is 0, but for the rounding of the two normalisers, which it takes out of a small KL
        kl = torch.where(kl_mask, temperature**2 * log_p.add_(difference).sum(-1, keepdim=True), 0.0)
        if slope is not None:
            total = torch.where(kl_mask, difference.mul_(kl_factor), 0.0)
    if slope is not None:
        if mlm_mask is not None:
            mine = torch.where(mlm_mask, log_z.exp_().mul_(mlm_factor), 0.0)
            total = mine if total is None else total.add_(mine)
        slope.copy_(total)
    return kl, mlm


# torch's log_softmax guards against infinite maxima, which makes the compiled kernel three times slower
def _peak_removed(z: Tensor) -> Tensor:
    return z - z.amax(-1, keepdim=True)


def _normalise_(z: Tensor) -> Tensor:
    """Of rows whose largest is about 0, log softmax, in place."""
    return z.sub_(z.exp().sum(-1, keepdim=True).log_())


@functools.cache
def passes_of(name: str) -> Callable:
    """row_losses on torch's operators ("torch"); as one kernel a block that torch.compile makes when a shape is new, C++ on a CPU, Triton on a GPU
    ("compiled"); or as the Triton kernel written here ("triton")."""
    if name == "triton":
        from ds_distill.losses.triton_rows import triton_row_losses  # not everyone has Triton

        return triton_row_losses
    return {"torch": row_losses, "compiled": torch.compile(row_losses)}[name]
