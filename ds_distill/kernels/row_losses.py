"""What lies between the logits' matrix products: losses and gradients of a block of rows, to be compiled into one kernel."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

# [n, V] tensors alive at once, on torch's own operators; compiled there are none. A CPU has masked-LM's apart.
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
    slope: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Losses of n rows of logits; writes the gradient in the student's logits, all but the masked-LM target's −1, into `slope`.

    z, t [n, V] the student's and teacher's products without biases (t None: no KL; mlm_mask None: no masked-LM); biases [V]; target [n, 1] int64;
    kl_mask, mlm_mask [n, 1] bool, the rows that count; factors (scalars on the device, the gradients' units) at least fp32, biases too where z is not.
    slope [n, V] becomes kl_factor · (q − p) + mlm_factor · softmax(z); it may be z itself, and is None where no gradient is wanted.
    Returns (kl [n, 1], T² · KL(softmax(t/T) ‖ softmax(z/T)); mlm [n, 1], −log softmax(z)_target), 0 where masked out, None where left out.
    """
    wide = mlm_factor.dtype
    z = _peak_removed(z.to(wide) if bias is None else z + bias)
    kl = mlm = total = None
    if mlm_mask is not None:
        e = z.exp()
        sum_z = e.sum(-1, keepdim=True)
        # where, not a product: a padded row's exponentials may be inf, and 0 · inf is nan
        mlm = torch.where(mlm_mask, sum_z.log() - z.gather(1, target), 0.0)
        if slope is not None:
            total = torch.where(mlm_mask, e.mul_(mlm_factor / sum_z), 0.0)
    if t is not None:
        z = z / temperature
        t = _peak_removed(t.to(wide) if t_bias is None else t + t_bias).div_(temperature)
        # one exponential a logit: the probabilities are the normalisers' summands
        q, p = z.exp(), t.exp()
        sum_q, sum_p = q.sum(-1, keepdim=True), p.sum(-1, keepdim=True)
        p.mul_(1 / sum_p)
        q = q.mul_(1 / sum_q).sub_(p)
        # Σ (q − p) is 0, but for the rounding of the two normalisers, which it takes out of a small KL
        rows = t.sub_(z).add_((sum_q / sum_p).log_()).mul_(p).add_(q).sum(-1, keepdim=True)
        kl = torch.where(kl_mask, temperature**2 * rows, 0.0)
        if slope is not None:
            mine = torch.where(kl_mask, q.mul_(kl_factor), 0.0)
            total = mine if total is None else mine.add_(total)
    if slope is not None:
        slope.copy_(total)
    return kl, mlm


# torch's log_softmax guards against infinite maxima, which makes the compiled kernel three times slower
def _peak_removed(z: Tensor) -> Tensor:
    return z - z.amax(-1, keepdim=True)


@functools.cache
def passes_of(name: str) -> Callable:
    """row_losses on torch's operators ("torch"); as one kernel a block that torch.compile makes when a shape is new, C++ on a CPU, Triton on a GPU
    ("compiled"); or as the Triton kernel written here ("triton")."""
    if name == "triton":
        from ds_distill.kernels.row_losses_triton import triton_row_losses  # not everyone has Triton

        return triton_row_losses
    return (
        torch.compile(row_losses) if name == "compiled" else row_losses
    )  # to ask for the compiler alone costs two seconds
