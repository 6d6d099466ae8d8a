"""Losses and gradients of a block of rows of logits, computed between the logits' matrix products.

The code can be compiled into one kernel.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The number of [n, V] tensors alive at once on torch's own operators; compiled there are none. On a
# CPU masked-LM has a call of its own.
TEMPORARIES = {"cpu": 5, "cuda": 7}


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
    grad_logit: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the losses of n rows of logits, and write their gradient into `grad_logit`.

    The gradient is that in the student's logits, all but the masked-LM target's −1.

    Args:
        z: [n, V], the student's products without biases.
        t: [n, V], the teacher's products without biases. None leaves KL out.
        bias: [V], the student's. At least fp32 where z is not.
        t_bias: [V], the teacher's. At least fp32 where z is not.
        target: [n, 1] int64.
        kl_mask: [n, 1] bool, the rows that count for KL.
        mlm_mask: [n, 1] bool, the rows that count for masked-LM. None leaves masked-LM out.
        kl_factor: A scalar on the device, at least fp32, in the gradients' units.
        mlm_factor: A scalar on the device, at least fp32, in the gradients' units.
        temperature: T in the formulas below.
        grad_logit: [n, V], becomes kl_factor · (q − p) + mlm_factor · softmax(z). It may be z itself,
            and is None where no gradient is wanted.

    Returns:
        (kl [n, 1], T² · KL(softmax(t/T) ‖ softmax(z/T)); mlm [n, 1], −log softmax(z)_target). Both
        are 0 where masked out and None where left out.
    """
    acc_dtype = mlm_factor.dtype
    z = _peak_removed(z.to(acc_dtype) if bias is None else z + bias)
    total: Any  # at the end a Tensor, since KL or masked-LM is asked for
    kl = mlm = total = None
    if mlm_mask is not None:
        e = z.exp()
        sum_z = e.sum(-1, keepdim=True)
        # where instead of a product: a padded row's exponentials may be inf, and 0 · inf is NaN
        mlm = torch.where(mlm_mask, sum_z.log() - z.gather(1, target), 0.0)
        if grad_logit is not None:
            total = torch.where(mlm_mask, e.mul_(mlm_factor / sum_z), 0.0)
    if t is not None:
        z = z / temperature
        t = _peak_removed(t.to(acc_dtype) if t_bias is None else t + t_bias).div_(temperature)
        # One exponential per logit suffices: the probabilities are the normalizers' summands.
        q, p = z.exp(), t.exp()
        sum_q, sum_p = q.sum(-1, keepdim=True), p.sum(-1, keepdim=True)
        p.mul_(1 / sum_p)
        q = q.mul_(1 / sum_q).sub_(p)
        # Σ (q − p) is 0 but for the rounding of the two normalizers, so adding it removes that
        # rounding from a small KL
        rows = t.sub_(z).add_((sum_q / sum_p).log_()).mul_(p).add_(q).sum(-1, keepdim=True)
        kl = torch.where(kl_mask, temperature**2 * rows, 0.0)
        if grad_logit is not None:
            kl_gradient = torch.where(kl_mask, q.mul_(kl_factor), 0.0)
            total = kl_gradient if total is None else kl_gradient.add_(total)
    if grad_logit is not None:
        grad_logit.copy_(total)
    return kl, mlm


# torch's log_softmax guards against infinite maxima, which makes the compiled kernel three times
# slower
def _peak_removed(z: Tensor) -> Tensor:
    return z - z.amax(-1, keepdim=True)


@functools.cache
def get_row_losses(name: str) -> Callable:
    """Return a function like row_losses, by name.

    "torch" is row_losses on torch's operators. "compiled" is one kernel per block, which
    torch.compile makes when a shape is new, in C++ on a CPU and in Triton on a GPU. "triton" is the
    Triton kernel written here.
    """
    if name == "triton":
        from ds_distill.kernels.row_losses_triton import triton_row_losses  # not everyone has Triton

        return triton_row_losses
    # torch.compile is called only for "compiled", because the call alone takes two seconds
    return torch.compile(row_losses) if name == "compiled" else row_losses
