"""The trained weights in fp32: from a live engine, or from its checkpoint on disk."""

import contextlib
import io
import re
from pathlib import Path

import deepspeed
import torch
from deepspeed.checkpoint.constants import SINGLE_PARTITION_OF_FP32_GROUPS
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
    # our own run's files, with its optimizer: not weights from outside
    state = torch.load(states[0], map_location="cpu", weights_only=False)
    found = dict(state["module"])  # frozen parameters are nowhere else below stage 2
    shards = [torch.load(file, map_location="cpu", weights_only=False)["optimizer_state_dict"]
              for file in sorted(folder.glob("*zero_pp_rank_*optim_states.pt"), key=_rank_of)]  # fmt: skip
    if shards and "zero_stage" not in shards[0]:  # bf16's own optimizer, which DeepSpeed's converter does not know
        flats = zip(*(shard[SINGLE_PARTITION_OF_FP32_GROUPS] for shard in shards), strict=True)
        found |= _cut([torch.cat(parts) for parts in flats], model)
    elif shards:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # DeepSpeed shows its progress there
            found |= get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    elif "fp32_groups_flat" in (state.get("optimizer") or {}):
        found |= _cut(state["optimizer"]["fp32_groups_flat"], model)
    elif "fp32_groups" in (state.get("optimizer") or {}):
        found |= _cut([torch.cat([piece.flatten() for piece in group]) for group in state["optimizer"]["fp32_groups"]], model)
    weights = {name: found.get(f"{PREFIX}{name}") for name, _ in model.named_parameters()}
    missing = [name for name, value in weights.items() if value is None or value.shape != model.get_parameter(name).shape]
    if missing:
        raise UserError(f"{folder}: holds no {missing[0]} of the shape in config.json: another model's checkpoint")
    return {name: value.detach().float().clone() for name, value in weights.items()}


def _rank_of(file: Path) -> int:
    return int(re.search(r"pp_rank_(\d+)", file.name)[1])


def _cut(flats: list[Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Flat fp32 masters, one a parameter group and perhaps padded, cut into the parameters they hold."""
    names = {id(parameter): f"{PREFIX}{name}" for name, parameter in model.named_parameters()}
    found = {}
    for flat, group in zip(flats, parameter_groups(model, 0.0), strict=True):
        offset = 0
        for parameter in group["params"]:
            found[names[id(parameter)]] = flat[offset : offset + parameter.numel()].view(parameter.shape)
            offset += parameter.numel()
    return found
