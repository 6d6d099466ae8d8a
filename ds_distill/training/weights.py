import deepspeed
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor


def master_weights(engine) -> dict[str, Tensor]:
    """Collective: the trained model's fp32 masters by state-dict name (tied ones once), on the CPU, from every ZeRO stage."""
    model = engine.module.model
    masters = _unsharded_masters(engine)
    weights = {}
    for name, parameter in model.named_parameters():
        full = masters.get(id(parameter))
        if full is None and parameter.requires_grad and engine.zero_optimization_stage() > 0:
            full = safe_get_full_fp32_param(parameter)
        if full is None:  # fp32 at stage 0, or frozen: the parameter is its own master
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                full = parameter.detach().clone()
        weights[name] = full.detach().float().cpu().clone()
    return weights


def _unsharded_masters(engine) -> dict[int, Tensor]:
    """Stage 0 in 16 bit: DeepSpeed keeps one flat fp32 copy a parameter group; cut it back into parameters."""
    optimizer, masters = engine.optimizer, {}
    flats = getattr(optimizer, "fp32_groups_flat", None)
    if engine.zero_optimization_stage() == 0 and flats is not None:
        for flat, parameters in zip(flats, optimizer.fp16_groups, strict=True):
            offset = 0
            for parameter in parameters:
                masters[id(parameter)] = flat[offset : offset + parameter.numel()].view(parameter.shape)
                offset += parameter.numel()
    elif engine.zero_optimization_stage() == 0 and hasattr(optimizer, "fp32_groups"):
        for wide, narrow in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
            masters |= {id(n): w for n, w in zip(narrow, wide, strict=True)}
    return masters
