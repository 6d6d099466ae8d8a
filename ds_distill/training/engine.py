"""A recipe's optimizer, schedule and DeepSpeed engine."""

import contextlib
import io
import math
from typing import cast

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from ds_distill.deepspeed_fixes import batch_gradient_copies, make_step_skippable, without_step_of_zeros
from ds_distill.recipe import Training
from ds_distill.training.deepspeed_config import deepspeed_config
from ds_distill.training.optimizer import make_optimizer, parameter_groups
from ds_distill.training.schedule import linear_schedule
from ds_distill.utils.memory import retain_freed_memory


def make_engine(
    module: nn.Module,
    training: Training,
    *,
    accumulation: int,
    total_steps: int,
    device: torch.device,
    dtype: torch.dtype,
    leave_out: tuple = (),
):
    """Build the DeepSpeedEngine around the Objective `module`.

    Args:
        module: The Objective, fp32 on the CPU.
        training: The recipe's training section.
        accumulation: The micro-batches per optimizer step.
        total_steps: The optimizer steps of the whole run.
        device: The device of the run.
        dtype: The number format of the run.
        leave_out: Keys of the DeepSpeed JSON to leave out, dotted within zero_optimization.
            Monitors are an example, since they write as soon as they are made.

    Returns:
        The engine, whose scheduler steps once per optimizer step.
    """
    config = {
        key: value for key, value in deepspeed_config(training, accumulation, dtype).items() if key not in leave_out
    }
    zero = config["zero_optimization"]
    config["zero_optimization"] = {
        key: value for key, value in zero.items() if f"zero_optimization.{key}" not in leave_out
    }
    offload = config["zero_optimization"].get("offload_optimizer", {}).get("device", "none") not in ("none", "auto")
    module.to(device)
    if device.type == "cpu":
        retain_freed_memory()
    rate = training.encoder_learning_rate
    rates = None if rate is None else {cast(str, module.trunk_name): rate}
    groups = parameter_groups(module, training.weight_decay, rates)
    names = [group.pop("names") for group in groups]
    optimizer = make_optimizer(training, groups, device, offload)
    factor = linear_schedule(round(training.warmup_ratio * total_steps), total_steps)

    # the engine rounds frozen parameters to 16 bit, and keeps fp32 masters of trained ones only
    frozen = {
        name: p.detach().float().cpu().clone()
        for name, p in module.named_parameters()
        if not p.requires_grad and dtype != torch.float32
    }
    zeros = without_step_of_zeros(optimizer) if config["zero_optimization"]["stage"] == 0 else contextlib.nullcontext()
    # DeepSpeed's 16-bit optimizer prints memory figures past its own logger
    with contextlib.redirect_stdout(io.StringIO()), zeros:
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            lr_scheduler=lambda wrapped: torch.optim.lr_scheduler.LambdaLR(wrapped, factor),
            config=config,
        )
    if dtype == torch.float32 and not engine.zero_optimization():
        make_step_skippable(optimizer)
    if device.type == "cuda" and isinstance(engine.optimizer, BF16_Optimizer):
        batch_gradient_copies(engine.optimizer)
    engine.frozen_weights = frozen
    engine.parameter_names = names  # one list per group; the group's flat fp32 masters are divided in this order
    alone = torch.distributed.get_world_size() == 1
    if alone and (
        isinstance(engine.optimizer, BF16_Optimizer) or (dtype == torch.float32 and not engine.zero_optimization())
    ):
        engine.enable_backward_allreduce = False  # a lone rank would copy every gradient into a bucket and back
    return engine


def optimizer_step(engine) -> float | None:
    """Call engine.step(); return the norm of the global gradient before clipping, or None within an accumulation."""
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    norm = None
    if not (engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled()):
        # in this case only, DeepSpeed computes the norm for clipping and throws it away
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
        engine.optimizer.overflow = not math.isfinite(norm)
    # this optimizer alone returns the norm of the scaled gradient
    scale = engine.optimizer.loss_scale if isinstance(engine.optimizer, FP16_UnfusedOptimizer) else 1.0
    engine.step()
    if norm is None:
        norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm) / scale


def backward(engine, loss: torch.Tensor) -> None:
    """Call engine.backward for a loss that is already divided by the global batch's counts."""
    # DeepSpeed 0.19 divides by the accumulation steps in a hook on the forward's output, unless
    # backward's own hook ran before it. On the very same tensor (stage 0 in fp32,
    # scale_wrt_gas=False) that hook runs after it, so the gradient would be divided. A new tensor
    # restores the order.
    scale = 1.0
    if engine.fp16_enabled() and not engine.zero_optimization():
        # Stage 0 divides its gradients by the loss scale, but DeepSpeed 0.19 multiplies the loss by
        # it only at the other stages.
        scale = engine.optimizer.loss_scale
    engine.backward(loss * scale, scale_wrt_gas=False)
