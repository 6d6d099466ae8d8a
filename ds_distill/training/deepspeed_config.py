"""The config for DeepSpeed: the recipe's DeepSpeed JSON with the recipe's own settings put in."""

import json

import torch

from ds_distill.recipe import Training
from ds_distill.training.deepspeed_json import without_recipe_settings
from ds_distill.utils.console import log


def resolve_zero_config(training: Training, dtype: torch.dtype) -> dict:
    """Return the recipe's zero_optimization, stage 0 where its DeepSpeed JSON names none.

    Without a JSON the stage is 0 in fp32, which then keeps one copy of the weights, and 1 in 16
    bit, where DeepSpeed's stage 0 copies all gradients once more per step (docs/benchmarks.md).
    """
    if training.deepspeed is None:
        return {"stage": 0 if dtype == torch.float32 else 1}
    return {"stage": 0} | training.deepspeed_json().get("zero_optimization", {})


def deepspeed_config(training: Training, accumulation: int, dtype: torch.dtype) -> dict:
    """Return the DeepSpeed JSON with the recipe's own settings put in; a conflict is a UserError that names both."""
    config = without_recipe_settings(str(training.deepspeed), training.deepspeed_json())
    config["zero_optimization"] = resolve_zero_config(training, dtype)
    stage = config["zero_optimization"]["stage"]
    config |= {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": training.max_grad_norm,
        "steps_per_print": 10**12,
        "timers": {"throughput": {"enabled": False}},  # it makes the host wait for a GPU twice per micro-step
    }
    if dtype == torch.bfloat16:
        config["bf16"] = {"enabled": True}
    if dtype == torch.float16:
        config["fp16"] = {"enabled": True, "initial_scale_power": 16}
    if dtype != torch.float32 and stage == 0 and accumulation > 1:
        name = str(dtype).removeprefix("torch.")
        log(
            f"warning: ZeRO stage 0 sums its {accumulation} accumulation steps in {name}, "
            "which loses small gradients; stages 1 to 3 sum them in fp32"
        )
    if dtype != torch.float32 and stage > 0:
        # 16-bit sums over accumulation steps lose the small gradients
        written = config.get("data_types", {"grad_accum_dtype": "fp32"})
        if written != {"grad_accum_dtype": "fp32"}:
            log(
                f"warning: {training.deepspeed}: data_types = {json.dumps(written)} is not used; in 16 bit gradients "
                "are summed in fp32 over accumulation steps"
            )
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        # so do sums over ranks, but they are a network's time, so they are the user's choice
        between = config.get("communication_data_type") or "fp32"
        if between != "fp32":
            log(
                f"warning: {training.deepspeed}: communication_data_type = {json.dumps(between)}: gradients are "
                "rounded to it before they are summed over ranks; fp32, the default, keeps the small ones"
            )
        config["communication_data_type"] = between
    return config
