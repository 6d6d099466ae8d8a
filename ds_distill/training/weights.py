"""The trained weights in fp32: from a live engine, or from its checkpoint on disk."""

import contextlib
import io
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor
from transformers import PreTrainedModel

from ds_distill.errors import UserError
from ds_distill.training.engine import parameter_groups

PREFIX = "model."  # the model's name in the module that the engine runs


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


def checkpoint_weights(folder: Path, model: PreTrainedModel) -> dict[str, Tensor]:
    """The same from a checkpoint on disk, without an engine and whatever the number of ranks that wrote it.

    model: one of the class and config that was trained, for its names. Raises UserError for a folder that holds no checkpoint of it.
    """
    states = sorted(folder.glob("*model_states.pt"))
    if not states:
        raise UserError(f"{folder}: no DeepSpeed checkpoint in it")
    if any(folder.glob("*zero_pp_rank_*optim_states.pt")) or any(folder.glob("bf16_zero*optim_states.pt")):
        with contextlib.redirect_stdout(io.StringIO()):  # DeepSpeed prints its progress there
            found = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    else:
        state = torch.load(states[0], map_location="cpu", weights_only=False)  # our own run's, with its optimizer
        found = state["module"] | _masters_by_name(state.get("optimizer") or {}, model)
    weights = {name: found.get(f"{PREFIX}{name}") for name, _ in model.named_parameters()}
    missing = [name for name, value in weights.items() if value is None or value.shape != model.get_parameter(name).shape]
    if missing:
        raise UserError(f"{folder}: holds no {missing[0]} of the shape in config.json: another model's checkpoint")
    return {name: value.detach().float().clone() for name, value in weights.items()}


def _masters_by_name(optimizer: dict, model: PreTrainedModel) -> dict[str, Tensor]:
    """Stage 0 in 16 bit: the fp32 masters of a saved optimizer, in the order of the parameter groups."""
    names = {id(parameter): f"{PREFIX}{name}" for name, parameter in model.named_parameters()}
    groups = [group["params"] for group in parameter_groups(model, 0.0)]
    if "fp32_groups_flat" in optimizer:
        pieces = [flat.split([p.numel() for p in group]) for flat, group in zip(_unpadded(optimizer["fp32_groups_flat"], groups), groups, strict=True)]
    elif "fp32_groups" in optimizer:
        pieces = optimizer["fp32_groups"]
    else:
        return {}
    pairs = [(p, piece) for group, part in zip(groups, pieces, strict=True) for p, piece in zip(group, part, strict=True)]
    return {names[id(p)]: piece.view(p.shape) for p, piece in pairs}


def _unpadded(flats: list[Tensor], groups: list[list]) -> list[Tensor]:
    return [flat[: sum(p.numel() for p in group)] for flat, group in zip(flats, groups, strict=True)]
