"""The losses between relations as operations whose gradient is finished in the forward pass."""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor, library

from ds_distill.kernels.fused_relations import fused_relation_kl, fused_score_error
from ds_distill.kernels.relations import plain_relation_kl, plain_score_error

WIDEST = 256  # the width of vectors up to which the Triton kernel's tiles fit a GPU's multiprocessor


def relation_loss(
    student: tuple[Tensor, Tensor],
    teachers: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float] | None,
    real: Tensor | None,
    documents: Tensor | None,
    backend: str = "auto",
    *,
    per_token: bool = False,
) -> Tensor:
    """Return the loss of plain_relation_kl or, where weights is None, of plain_score_error, which reads `per_token`.

    It is differentiable once, in the student's tensors. The arguments are those of fused_relation_kl, and
    `backend` is what computes it: "plain" is ds_distill.kernels.relations, "torch" its fused form of the
    same values, "triton" the kernel for GPUs, and "auto" is "triton" where it can be, else "torch".
    """
    if backend == "plain":
        fixed = [(x.detach(), y.detach()) for x, y in teachers]
        with torch.autocast(student[0].device.type, enabled=False):
            if weights is None:
                return plain_score_error(student, fixed[0], real, documents, per_token)
            return plain_relation_kl(student, fixed, weights, real, documents)
    a, b = student[0], None if student[1] is student[0] else student[1]
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (a, b)]
    flat = [x.detach() for pair in teachers for x in ((pair[0],) if pair[1] is pair[0] else pair)]
    own = [pair[1] is not pair[0] for pair in teachers]
    return _RelationLoss.apply(a, b, real, documents, weights, backend, per_token, wanted, own, *flat)


class _RelationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, real, documents, weights, backend, per_token, wanted, own, *teachers):
        compute = _opaque if torch.compiler.is_compiling() else _loss_and_gradients
        loss, d_a, d_b = compute(a, b, teachers, own, weights, real, documents, wanted, backend, per_token)
        ctx.save_for_backward(d_a, d_b, a, b)
        ctx.wanted = wanted
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        d_a, d_b, a, b = ctx.saved_tensors
        gradients = [
            _Once.apply(_scaled(d, grad_loss, x.dtype), x) if wanted else None
            for d, x, wanted in zip((d_a, d_b), (a, b), ctx.wanted, strict=True)
        ]
        return (*gradients, *[None] * (len(ctx.needs_input_grad) - 2))


class _Once(torch.autograd.Function):
    """Return a gradient in x; to differentiate it again raises an error, where `once_differentiable` may be silent."""

    @staticmethod
    def forward(ctx, gradient, x):
        return gradient

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError("relation and attention losses are differentiable once, not twice")


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    if gradient.device.type == "cpu" and gradient.dtype == dtype and not torch.compiler.is_compiling():
        return gradient * factor.item()
    # a 0-dim factor would be rounded to 16 bit
    return (gradient * factor.detach().reshape(1, 1, 1, 1)).to(dtype)


def _loss_and_gradients(
    a: Tensor,
    b: Tensor | None,
    teachers: Sequence[Tensor],
    own: Sequence[bool],
    weights: Sequence[float] | None,
    real: Tensor | None,
    documents: Tensor | None,
    wanted: Sequence[bool],
    backend: str,
    per_token: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, and its gradients in a and b, which are empty where not wanted.

    b is None where it is a. `teachers` has the a of each teacher, followed by its b where `own` says that it is
    another tensor.
    """
    student, rest = (a, a if b is None else b), iter(teachers)
    pairs = [(x, next(rest) if other else x) for x, other in ((next(rest), other) for other in own)]
    d_a, d_b = (
        torch.zeros(x.shape, dtype=_gradient_dtype(x.dtype), device=x.device) if want else None
        for x, want in zip(student, wanted, strict=True)
    )
    outs = (d_a, d_a if b is None else d_b)
    with torch.autocast(a.device.type, enabled=False):
        if backend == "triton" or (backend == "auto" and _suits_triton([*student, *teachers])):
            from ds_distill.kernels.relations_triton import triton_relation_loss  # not everyone has Triton

            loss = triton_relation_loss(student, pairs, weights, real, documents, outs, per_token)
        elif weights is None:
            loss = fused_score_error(student, pairs[0], real, documents, outs, per_token)
        else:
            loss = fused_relation_kl(student, pairs, weights, real, documents, outs)
    nothing = a.new_empty(0)
    return loss, nothing if d_a is None else d_a, nothing.clone() if d_b is None else d_b


# The same as an operation of its own, because torch.compile would unroll the loop over sequences, and cannot see how
# many tokens are real. Eager calls would load all of torch.compile.
_opaque = library.custom_op("ds_distill::relation_loss", _loss_and_gradients, mutates_args=())


@_opaque.register_fake
def _(a, b, teachers, own, weights, real, documents, wanted, backend, per_token):
    dtype = torch.promote_types(torch.promote_types(a.dtype, (a if b is None else b).dtype), torch.float32)
    gradients = (
        x.new_empty(x.shape, dtype=_gradient_dtype(x.dtype)) if want else a.new_empty(0)
        for x, want in zip((a, b), wanted, strict=True)
    )
    return a.new_empty((), dtype=dtype), *gradients


def _suits_triton(tensors: Sequence[Tensor]) -> bool:
    return (
        all(x.is_cuda and x.dtype != torch.float64 and x.shape[-1] <= WIDEST for x in tensors)
        and importlib.util.find_spec("triton") is not None
    )


def _gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which gradients wait for the backward pass, where the loss scale of fp16 is known."""
    return torch.float32 if dtype == torch.float16 else dtype
