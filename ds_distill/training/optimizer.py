"""Build AdamW by the recipe's choice, and its parameter groups."""

from typing import Any

import torch
from torch import nn

from ds_distill.builds.fused_adam import apex_unavailable_reason, build_optimizer
from ds_distill.deepspeed_fixes import make_adam_resumable
from ds_distill.distributed.process_group import all_gather_object
from ds_distill.recipe import Training
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


def parameter_groups(module: nn.Module, weight_decay: float, rates: dict[str, float] | None = None) -> list[dict]:
    """Return parameter groups: matrices with weight decay, biases and every norm without.

    Args:
        module: The module to train.
        weight_decay: The weight decay of matrices.
        rates: Learning rates by the beginning of a parameter's name. Such parameters form groups of
            their own.

    Returns:
        Groups with "params", "names", "weight_decay" and, where the group has its own rate, "lr".
    """
    groups: dict[tuple, dict] = {}
    owners = {
        f"{prefix}.{name}".lstrip("."): owner
        for prefix, owner in module.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
    }
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = name.endswith("bias") or isinstance(owners[name], nn.LayerNorm)
        rate = next((rate for start, rate in (rates or {}).items() if name.startswith(start)), None)
        group: dict[str, Any] = {"params": [], "names": [], "weight_decay": 0.0 if plain else weight_decay} | (
            {} if rate is None else {"lr": rate}
        )
        group = groups.setdefault((rate is not None, rate or 0.0, plain), group)
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    training: Training, groups: list[dict], device: torch.device, offload: bool
) -> torch.optim.Optimizer:
    """Collective: return AdamW as the recipe chooses it.

    "auto" is torch's fused one where DeepSpeed's is unavailable.

    Args:
        training: The recipe's training section.
        groups: The parameter groups.
        device: The device of the run.
        offload: Whether the optimizer's state is offloaded to the CPU.

    Raises:
        UserError: The optimizer that the recipe names is unavailable.
    """
    options: dict[str, Any] = {"lr": training.learning_rate, "betas": tuple(training.betas), "eps": training.eps}
    choice = training.optimizer
    if offload and choice not in ("auto", "deepspeed"):
        raise UserError(
            f"training.optimizer = {choice}: optimizer offload in {training.deepspeed} needs DeepSpeed's "
            "optimizer; set it to deepspeed or auto"
        )
    if choice == "apex":
        reason = apex_unavailable_reason()
        if reason:
            raise UserError(f"training.optimizer = apex: {reason}; or use auto")
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, adam_w_mode=True, **options)
    if choice in ("auto", "deepspeed"):
        reason = _agreed(build_optimizer(offload))
        if reason is None:
            from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

            adam = (
                DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
                if offload
                else FusedAdam(groups, adam_w_mode=True, **options)
            )
            return make_adam_resumable(adam) if offload or device.type == "cpu" else adam
        if offload or choice == "deepspeed":
            raise UserError(
                f"training.optimizer = {choice}: DeepSpeed's optimizer cannot be built here ({reason}); "
                "use torch, without offload"
            )
        log(f"optimizer: torch's fused AdamW; DeepSpeed's FusedAdam cannot be built here ({reason})")
    return torch.optim.AdamW(groups, fused=True, **options)


def _agreed(reason: str | None) -> str | None:
    """Collective: return the first reason that any rank has; ranks with different optimizers would drift apart."""
    return next((r for r in all_gather_object(reason) if r is not None), None)
