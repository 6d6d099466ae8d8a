"""A recipe's optimizer, schedule and DeepSpeed engine."""

import contextlib
import io
import json
import math
import os
from collections.abc import Iterator

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import nn

from ds_distill.builds.fused_adam import build_optimizer, make_resumable, why_no_apex
from ds_distill.distributed.process_group import from_every_rank, from_first_rank
from ds_distill.models.teacher import choose_cpu_dtype
from ds_distill.recipe import Training
from ds_distill.training.deepspeed_json import without_recipes_own
from ds_distill.utils.console import say
from ds_distill.utils.errors import UserError
from ds_distill.utils.memory import keep_freed_memory


def device_of_rank(wanted: str = "auto") -> torch.device:
    """This rank's device; UserError where a GPU is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device = cuda: torch sees no GPU here (ds-distill env says more); use auto or cpu")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device


def precision_of(training: Training, device: torch.device) -> torch.dtype:
    """Collective: the trained model's dtype; raises UserError for fp16 on a CPU, whose GEMMs there are tens of times slower."""
    if training.precision == "auto":
        if device.type == "cuda":  # GPUs before Ampere have no bf16 units
            return from_first_rank(torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16)
        # a measurement may come out differently on two ranks
        return from_first_rank(choose_cpu_dtype() if torch.distributed.get_rank() == 0 else None)
    if training.precision == "fp16" and device.type == "cpu":
        raise UserError("training.precision = fp16: this machine has no GPU; use bf16, fp32 or auto")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[training.precision]


def parameter_groups(module: nn.Module, weight_decay: float, rates: dict[str, float] | None = None) -> list[dict]:
    """Decayed matrices; biases and every norm without decay. rates: by the start of a parameter's name, its learning rate: groups of their own.

    Each group has "params", "names", "weight_decay" and, of a rate of its own, "lr".
    """
    groups: dict[tuple, dict] = {}
    owners = {f"{prefix}.{name}".lstrip("."): owner for prefix, owner in module.named_modules() for name, _ in owner.named_parameters(recurse=False)}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = name.endswith("bias") or isinstance(owners[name], nn.LayerNorm)
        rate = next((rate for start, rate in (rates or {}).items() if name.startswith(start)), None)
        group = {"params": [], "names": [], "weight_decay": 0.0 if plain else weight_decay} | ({} if rate is None else {"lr": rate})
        group = groups.setdefault((rate is not None, rate or 0.0, plain), group)
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def make_optimizer(training: Training, groups: list[dict], device: torch.device, offload: bool) -> torch.optim.Optimizer:
    """Collective: AdamW by the recipe's choice. UserError where what it names is not to be had; "auto" takes torch's fused one instead."""
    options = {"lr": training.learning_rate, "betas": tuple(training.betas), "eps": training.eps}
    choice = training.optimizer
    if offload and choice not in ("auto", "deepspeed"):
        raise UserError(f"training.optimizer = {choice}: optimizer offload in {training.deepspeed} needs deepspeed or auto")
    if choice == "apex":
        reason = why_no_apex()
        if reason:
            raise UserError(f"training.optimizer = apex: {reason}; or use auto")
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, adam_w_mode=True, **options)
    if choice in ("auto", "deepspeed"):
        reason = _agreed(build_optimizer(offload))
        if reason is None:
            from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

            adam = DeepSpeedCPUAdam(groups, adamw_mode=True, **options) if offload else FusedAdam(groups, adam_w_mode=True, **options)
            return make_resumable(adam) if offload or device.type == "cpu" else adam
        if offload or choice == "deepspeed":
            raise UserError(f"training.optimizer = {choice}: DeepSpeed's cannot be built here ({reason}); use torch, without offload")
        say(f"optimizer: torch's fused AdamW; DeepSpeed's FusedAdam cannot be built here ({reason})")
    return torch.optim.AdamW(groups, fused=True, **options)


def _agreed(reason: str | None) -> str | None:
    """Collective: the first reason that any rank has; ranks with different optimizers would drift apart."""
    return next((r for r in from_every_rank(reason) if r is not None), None)


def linear_schedule(warmup_steps: int, total_steps: int):
    """Factor of the peak rate at optimizer step s (0-based): linear up over warmup_steps, then linear to zero."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return factor


def zero_of(training: Training, dtype: torch.dtype) -> dict:
    """The recipe's zero_optimization, stage 0 where its DeepSpeed JSON names none. Without a JSON stage 0 in fp32, which then keeps one copy of the
    weights, and stage 1 in 16 bit: DeepSpeed's stage 0 there copies all gradients once more a step (docs/PERFORMANCE.md)."""
    if training.deepspeed is None:
        return {"stage": 0 if dtype == torch.float32 else 1}
    return {"stage": 0} | training.deepspeed_json().get("zero_optimization", {})


def deepspeed_config(training: Training, accumulation: int, dtype: torch.dtype) -> dict:
    """The DeepSpeed JSON with the recipe's own settings put in; a conflict is a UserError that names both."""
    config = without_recipes_own(str(training.deepspeed), training.deepspeed_json())
    config["zero_optimization"] = zero_of(training, dtype)
    stage = config["zero_optimization"]["stage"]
    config |= {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": training.clip,
        "steps_per_print": 10**12,
        "timers": {"throughput": {"enabled": False}},  # it makes the host wait for a GPU twice a micro-step
    }
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True}
    if dtype == torch.float16:
        config["fp16"] = {"enabled": True, "initial_scale_power": 16}
    if dtype != torch.float32 and stage == 0 and accumulation > 1:
        name = str(dtype).removeprefix("torch.")
        say(f"warning: ZeRO stage 0 sums its {accumulation} accumulation steps in {name}, which loses small gradients; stages 1 to 3 sum them in fp32")
    if dtype != torch.float32 and stage > 0:
        # 16-bit sums over accumulation steps and ranks lose the small gradients
        for key, value in {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}.items():
            if config.get(key, value) != value:
                said = json.dumps(config[key])
                say(f"warning: {training.deepspeed}: {key} = {said} is not used; in 16 bit gradients are summed in fp32")
            config[key] = value
    return config


def make_engine(
    module: nn.Module, training: Training, *, accumulation: int, total_steps: int, device: torch.device, dtype: torch.dtype, leave_out: tuple = ()
):
    """Build the engine around the Objective `module` (fp32 on the CPU); returns a DeepSpeedEngine whose scheduler steps once an optimizer step.

    leave_out: sections of the DeepSpeed JSON, such as its monitors, which write as soon as they are made.
    """
    config = {key: value for key, value in deepspeed_config(training, accumulation, dtype).items() if key not in leave_out}
    offload = config["zero_optimization"].get("offload_optimizer", {}).get("device", "none") not in ("none", "auto")
    module.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    rate = training.trunk_learning_rate
    groups = parameter_groups(module, training.weight_decay, None if rate is None else {module.trunk_name: rate})
    names = [group.pop("names") for group in groups]
    optimizer = make_optimizer(training, groups, device, offload)
    factor = linear_schedule(round(training.warmup * total_steps), total_steps)

    # the engine rounds frozen parameters to 16 bit, and keeps fp32 masters of trained ones only
    frozen = {name: p.detach().float().cpu().clone() for name, p in module.named_parameters() if not p.requires_grad and dtype != torch.float32}
    zeros = _no_step_of_zeros(optimizer) if config["zero_optimization"]["stage"] == 0 else contextlib.nullcontext()
    with contextlib.redirect_stdout(io.StringIO()), zeros:  # its 16-bit optimizer prints memory figures, past its own logger
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            lr_scheduler=lambda wrapped: torch.optim.lr_scheduler.LambdaLR(wrapped, factor),
            config=config,
        )
    if dtype == torch.float32 and not engine.zero_optimization():
        _make_skippable(optimizer)
    if device.type == "cuda" and isinstance(engine.optimizer, BF16_Optimizer):
        batch_gradients(engine.optimizer)
    engine.frozen_weights = frozen
    engine.parameter_names = names  # a group each: what its flat fp32 masters are cut by
    alone = torch.distributed.get_world_size() == 1
    if alone and (isinstance(engine.optimizer, BF16_Optimizer) or (dtype == torch.float32 and not engine.zero_optimization())):
        engine.enable_backward_allreduce = False  # alone, it would copy every gradient into a bucket and back
    return engine


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


def optimizer_step(engine) -> float | None:
    """engine.step(); returns the norm of the global gradient before clipping, at the end of an accumulation, else None."""
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    norm = None
    if not (engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled()):
        # alone here DeepSpeed computes the norm for clipping and throws it away
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
        engine.optimizer.overflow = not math.isfinite(norm)
    scale = engine.optimizer.loss_scale if isinstance(engine.optimizer, FP16_UnfusedOptimizer) else 1.0  # it alone tells the scaled gradient's norm
    engine.step()
    if norm is None:
        norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm) / scale


def backward(engine, loss: torch.Tensor) -> None:
    """engine.backward for a loss that is already divided by the global batch's counts."""
    # DeepSpeed 0.19 divides by the accumulation steps in a hook on the forward's output unless backward's own hook ran before it; on the very
    # same tensor (stage 0 in fp32, scale_wrt_gas=False) it runs after, so the gradient would be divided. A new tensor restores the order.
    scale = 1.0
    if engine.fp16_enabled() and not engine.zero_optimization():
        scale = engine.optimizer.loss_scale  # stage 0 divides its gradients by it, but DeepSpeed 0.19 multiplies the loss at the other stages only
    engine.backward(loss * scale, scale_wrt_gas=False)
