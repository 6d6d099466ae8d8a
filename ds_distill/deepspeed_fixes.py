"""Every change made to DeepSpeed at run time, each with the version that needs it and the reason."""

import contextlib
from collections.abc import Iterator

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from torch import nn


@contextlib.contextmanager
def _no_step_of_zeros(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """DeepSpeed's stage 0 in 16 bit has its optimizer take a step of zeros while it is made, so that its memory is there: that step must neither decay
    the weights nor count in Adam's bias correction, where it makes the first real step a quarter too small."""
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    yield
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for holder in (*optimizer.state.values(), *optimizer.param_groups):  # apex counts in its groups
        if "step" in holder:
            holder["step"] *= 0  # a number, or a tensor of one


def batch_gradients(optimizer: BF16_Optimizer) -> None:
    """Have gradients copied into fp32, measured and clipped a group at a time. DeepSpeed does it a parameter at a time: five hundred kernels a step,
    too small for a GPU, which waits for the host meanwhile."""

    @torch.no_grad()
    def update_hp_grads(clear_lp_grads: bool = False) -> None:
        for group, wide, there in zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients, strict=True):
            first = not any(there)
            for mine in _pieces(group):
                into, low = [wide[number] for number in mine], [group[number].grad for number in mine]
                new = into if first else [torch.empty_like(x) for x in into]
                torch._foreach_copy_(new, [x.reshape(-1) for x in low])
                if not first:
                    torch._foreach_add_(into, new)
                for number in mine:
                    there[number], group[number]._hp_grad = True, wide[number]
                if clear_lp_grads:
                    torch._foreach_zero_(low)

    def get_grads_for_norm(for_clipping: bool = False):
        whole = optimizer.fp32_groups_actual_gradients_flat
        return whole if for_clipping else (whole, {})

    optimizer.update_hp_grads, optimizer.get_grads_for_norm = update_hp_grads, get_grads_for_norm


def _pieces(group: list[nn.Parameter]) -> Iterator[list[int]]:
    """Numbers of the parameters that have a gradient, some 64 MB of fp32 at a time."""
    piece, elements = [], 0
    for number, p in enumerate(group):
        if p.grad is not None:
            piece, elements = [*piece, number], elements + p.numel()
        if elements >= 2**24:
            yield piece
            piece, elements = [], 0
    if piece:
        yield piece


def _make_skippable(optimizer: torch.optim.Optimizer) -> None:
    """Give fp32 at stage 0 what DeepSpeed has everywhere else: a step with a gradient that is not finite changes nothing, and is counted."""
    step, optimizer.overflow = optimizer.step, False
    optimizer.step = lambda *arguments, **options: None if optimizer.overflow else step(*arguments, **options)
