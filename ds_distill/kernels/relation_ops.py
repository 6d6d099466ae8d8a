"""The losses between relations as operations whose gradient is finished in the forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor, library

from ds_distill.kernels.fused_relations import fused_relation_kl, fused_score_error
from ds_distill.kernels.relations import plain_relation_kl, plain_score_error


def relation_loss(
    student: tuple[Tensor, Tensor],
    teachers: Sequence[tuple[Tensor, Tensor]],
    weights: Sequence[float] | None,
    real: Tensor | None,
    documents: Tensor | None,
    backend: str = "auto",
) -> Tensor:
    """Return the loss of plain_relation_kl or, where weights is None, of plain_score_error.

    It is differentiable once, in the student's tensors. The arguments are those of fused_relation_kl, and
    `backend` is what computes it: "plain" is ds_distill.kernels.relations, "torch" its fused form of the
    same values, "triton" the kernel for GPUs, and "auto" is "triton" where it can be, else "torch".
    """
    if backend == "plain":
        fixed = [(x.detach(), y.detach()) for x, y in teachers]
        with torch.autocast(student[0].device.type, enabled=False):
            if weights is None:
                return plain_score_error(student, fixed[0], real, documents)
            return plain_relation_kl(student, fixed, weights, real, documents)
    a, b = student[0], None if student[1] is student[0] else student[1]
    wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in (a, b)]
    flat = [x.detach() for pair in teachers for x in ((pair[0],) if pair[1] is pair[0] else pair)]
    own = [pair[1] is not pair[0] for pair in teachers]
    return _RelationLoss.apply(a, b, real, documents, weights, backend, wanted, own, *flat)


class _RelationLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, real, documents, weights, backend, wanted, own, *teachers):
        loss, d_a, d_b = _relation_loss(a, b, teachers, own, weights, real, documents, wanted, backend)
        ctx.save_for_backward(d_a, d_b)
        ctx.wanted, ctx.dtypes = wanted, (a.dtype, None if b is None else b.dtype)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        # a 0-dim factor would be rounded to 16 bit
        factor = grad_loss.reshape(1, 1, 1, 1)
        gradients = [
            (d * factor).to(dtype) if wanted else None
            for d, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.wanted, strict=True)
        ]
        return (*gradients, *[None] * (len(ctx.needs_input_grad) - 2))


# This is an operation of its own because torch.compile would unroll its loop, and cannot see how many tokens are real.
@library.custom_op("ds_distill::relation_loss", mutates_args=())
def _relation_loss(
    a: Tensor,
    b: Tensor | None,
    teachers: Sequence[Tensor],
    own: Sequence[bool],
    weights: Sequence[float] | None,
    real: Tensor | None,
    documents: Tensor | None,
    wanted: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, and its gradients in a and b, which are empty where not wanted.

    `teachers` has the a of each teacher, followed by its b where `own` says that it is another tensor.
    """
    student, rest = (a, a if b is None else b), iter(teachers)
    pairs = [(x, next(rest) if other else x) for x, other in ((next(rest), other) for other in own)]
    d_a, d_b = (
        torch.zeros(x.shape, dtype=_gradient_dtype(x.dtype), device=x.device) if want else None
        for x, want in zip(student, wanted, strict=True)
    )
    outs = (d_a, d_a if b is None else d_b)
    with torch.autocast(a.device.type, enabled=False):
        if weights is None:
            loss = fused_score_error(student, pairs[0], real, documents, outs)
        else:
            loss = fused_relation_kl(student, pairs, weights, real, documents, outs)
    return loss, *(a.new_empty(0) if d is None else d for d in (d_a, d_b))


@_relation_loss.register_fake
def _(a, b, teachers, own, weights, real, documents, wanted, backend):
    dtype = torch.promote_types(torch.promote_types(a.dtype, (a if b is None else b).dtype), torch.float32)
    gradients = (
        x.new_empty(x.shape, dtype=_gradient_dtype(x.dtype)) if want and x is not None else a.new_empty(0)
        for x, want in zip((a, b), wanted, strict=True)
    )
    return a.new_empty((), dtype=dtype), *gradients


def _gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which gradients wait for the backward pass, where the loss scale of fp16 is known."""
    return torch.float32 if dtype == torch.float16 else dtype
