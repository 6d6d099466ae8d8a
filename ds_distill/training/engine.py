"""The DeepSpeed engine of a run: its optimizer and schedule, and the calls of a step."""

import contextlib
import io
import math
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor, nn

from ds_distill.deepspeed_fixes import (
    batch_gradient_copies,
    import_muon_uncompiled,
    make_step_skippable,
    without_step_of_zeros,
)
from ds_distill.recipe import Training
from ds_distill.training.deepspeed_config import deepspeed_config
from ds_distill.training.optimizer import make_optimizer, parameter_groups
from ds_distill.training.schedule import linear_schedule
from ds_distill.utils.memory import retain_freed_memory


class Engine:
    """DeepSpeed's engine around a module, with what it computes wrongly or not at all put right.

    Attributes:
        deepspeed: The DeepSpeedEngine. Its scheduler steps once per optimizer step.
        module: The module, an Objective in every run.
        parameter_names: The names of each optimizer group's parameters, in the order in which
            DeepSpeed divides the group's flat fp32 masters.
        frozen_names: The names of the parameters that are not trained.
        frozen_weights: fp32 copies of the weights that a 16-bit run does not train. DeepSpeed rounds
            these to 16 bit and keeps masters of trained ones only.
    """

    def __init__(
        self,
        module: nn.Module,
        training: Training,
        *,
        accumulation: int,
        total_steps: int,
        device: torch.device,
        dtype: torch.dtype,
        first_step: int = 0,
        leave_out: tuple[str, ...] = (),
    ):
        """Collective: make the engine, in training mode.

        Args:
            module: The Objective, fp32 on the CPU.
            training: The recipe's training section.
            accumulation: The micro-batches per optimizer step.
            total_steps: The optimizer steps that the learning rate's schedule spans.
            device: The device of the run.
            dtype: The number format of the run.
            first_step: The first of these steps that this engine takes.
            leave_out: Keys of the DeepSpeed JSON to leave out, dotted within zero_optimization.
                Monitors are an example, since they write as soon as they are made.
        """
        config = _without(deepspeed_config(training, accumulation, dtype), leave_out)
        zero = config["zero_optimization"]
        module.to(device)
        if device.type == "cpu":
            retain_freed_memory()
        rate = training.encoder_learning_rate
        groups = parameter_groups(
            module, training.weight_decay, None if rate is None else {str(module.encoder_prefix): rate}
        )
        self.module = module
        self.parameter_names = [group.pop("names") for group in groups]
        offload = zero.get("offload_optimizer", {}).get("device", "none") not in ("none", "auto")
        optimizer = make_optimizer(training, groups, device, offload)
        factor = linear_schedule(round(training.warmup_ratio * total_steps), total_steps)
        self.frozen_names = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        self.frozen_weights = {
            name: parameter.detach().float().cpu().clone()
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad and dtype != torch.float32
        }
        import_muon_uncompiled()
        no_zeros = without_step_of_zeros(optimizer) if zero["stage"] == 0 else contextlib.nullcontext()
        # DeepSpeed's 16-bit optimizer prints memory figures past its own logger
        with contextlib.redirect_stdout(io.StringIO()), no_zeros:
            self.deepspeed, *_ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                lr_scheduler=lambda wrapped: torch.optim.lr_scheduler.LambdaLR(
                    wrapped, lambda step: factor(first_step + step)
                ),
                config=config,
            )
        plain = dtype == torch.float32 and not self.deepspeed.zero_optimization()
        if plain:
            make_step_skippable(optimizer)
        if device.type == "cuda" and isinstance(self.deepspeed.optimizer, BF16_Optimizer):
            batch_gradient_copies(self.deepspeed.optimizer)
        alone = torch.distributed.get_world_size() == 1
        if alone and (plain or isinstance(self.deepspeed.optimizer, BF16_Optimizer)):
            # a lone rank would copy every gradient into a bucket and back
            self.deepspeed.enable_backward_allreduce = False
        self.train()

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Return what the module returns."""
        return self.deepspeed(*inputs, **options)

    def train(self, mode: bool = True) -> None:
        """Put the module into training mode, or evaluation mode."""
        self.deepspeed.train(mode)

    def eval(self) -> None:
        """Put the module into evaluation mode."""
        self.deepspeed.eval()

    @property
    def training(self) -> bool:
        """Whether the module is in training mode."""
        return self.deepspeed.training

    @property
    def skipped_steps(self) -> int:
        """The optimizer steps that were skipped because a gradient was not finite."""
        return self.deepspeed.skipped_steps

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step, of the first group of parameters."""
        return self.deepspeed.get_lr()[0]

    def follow_schedule(self) -> list[float]:
        """Return the rates of the next step by this run's schedule, of each group, after a checkpoint was loaded."""
        schedule = self.deepspeed.lr_scheduler
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        schedule._last_lr = [rate * factor for rate, factor in zip(schedule.base_lrs, factors, strict=True)]
        return schedule.get_last_lr()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss that is already divided by the global batch's counts."""
        # DeepSpeed 0.19 divides by the accumulation steps in a hook on the forward's output, unless
        # backward's own hook ran before it. On the very same tensor (stage 0 in fp32,
        # scale_wrt_gas=False) that hook runs after it, so the gradient would be divided. A new tensor
        # restores the order.
        scale = 1.0
        if self.deepspeed.fp16_enabled() and not self.deepspeed.zero_optimization():
            # Stage 0 divides its gradients by the loss scale, but DeepSpeed 0.19 multiplies the loss by
            # it only at the other stages.
            scale = self.deepspeed.optimizer.loss_scale
        self.deepspeed.backward(loss * scale, scale_wrt_gas=False)

    def step(self) -> float | None:
        """End a micro-batch; after the last of an accumulation, update the weights.

        Returns:
            The norm of the global gradient before clipping, or None within an accumulation.
        """
        engine = self.deepspeed
        if not engine.is_gradient_accumulation_boundary():
            engine.step()
            return None
        norm = None
        if not (engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled()):
            # in this case only, DeepSpeed computes the norm for clipping and throws it away
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            engine.optimizer.overflow = not math.isfinite(norm)
        # this optimizer alone returns the norm of the scaled gradient
        scale = engine.optimizer.loss_scale if isinstance(engine.optimizer, FP16_UnfusedOptimizer) else 1.0
        engine.step()
        if norm is None:
            norm = engine.get_global_grad_norm()
        return None if norm is None else float(norm) / scale

    def destroy(self) -> None:
        """Free what DeepSpeed holds."""
        self.deepspeed.destroy()


def _without(config: dict[str, Any], leave_out: tuple[str, ...]) -> dict[str, Any]:
    zero = config["zero_optimization"]
    config = {key: value for key, value in config.items() if key not in leave_out}
    return config | {
        "zero_optimization": {key: value for key, value in zero.items() if f"zero_optimization.{key}" not in leave_out}
    }
