"""The trained weights in fp32, from a live engine or from its checkpoint on disk."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import deepspeed
import torch
from deepspeed.checkpoint.constants import SINGLE_PARTITION_OF_FP32_GROUPS
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.deepspeed_fixes import regex_safe_path, silent_converters
from ds_distill.models.loading import new_model
from ds_distill.training.checkpoint import FROZEN, find_damage, read_manifest
from ds_distill.training.engine import Engine
from ds_distill.training.trusted import check_trusted
from ds_distill.utils.errors import UserError

PREFIX = "model."  # the model's name in the module that the engine runs


def gather_master_weights(engine: Engine) -> dict[str, Tensor]:
    """Collective: return the trained model's fp32 masters by state-dict name, on the CPU, at any ZeRO stage.

    Tied weights are in it once.
    """
    return gather_masters(engine, cast(PreTrainedModel, engine.module.model), PREFIX)


def gather_masters(engine: Engine, part: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Collective: return the fp32 masters of a part of the engine's module by their names in it, on the CPU.

    Args:
        engine: The engine.
        part: The part.
        prefix: What its parameters' names in the engine's module begin with.
    """
    masters = _unsharded_masters(engine)
    weights = {}
    for name, parameter in part.named_parameters():
        full = masters.get(id(parameter))
        if full is None:
            full = engine.frozen_weights.get(f"{prefix}{name}")
        if full is None and parameter.requires_grad and engine.deepspeed.zero_optimization_stage() > 0:
            full = safe_get_full_fp32_param(parameter)
        if full is None:  # in fp32 the parameter is its own master
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                full = parameter.detach().clone()
        weights[name] = full.detach().float().cpu().clone()
    return weights


def _unsharded_masters(engine: Engine) -> dict[int, Tensor]:
    """Return the masters by id of the parameter; at stage 0 in 16 bit DeepSpeed keeps one fp32 copy per group."""
    if engine.deepspeed.zero_optimization_stage() > 0:
        return {}
    return _unflatten(
        _group_masters(vars(engine.deepspeed.optimizer)), getattr(engine.deepspeed.optimizer, "fp16_groups", [])
    )


def trained_class(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """Return a model of the config and of the class that a checkpoint holds: a masked-LM model, or a bare encoder.

    Args:
        folder: The checkpoint.
        config: The config of the trained model.

    Raises:
        UserError: The checkpoint's manifest is damaged.
    """
    try:
        manifest = read_manifest(folder)
    except UserError as damage:
        raise UserError(f"{folder} is damaged ({damage}); export another checkpoint, by its --step") from damage
    with torch.device("meta"):
        bare = {f"{PREFIX}{name}" for name, _ in new_model(config, head=False).named_parameters()}
    # a stage may leave the head as it is; earlier versions named no frozen parameters
    every = [*manifest["groups"], manifest.get("frozen", [])]
    names = {name for group in every for name in group if name.startswith(PREFIX)}
    return new_model(config, head=not names <= bare).float()


def load_checkpoint_weights(folder: Path, model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the same weights from a checkpoint on disk, without an engine, for any number of ranks that wrote it.

    Args:
        folder: The checkpoint.
        model: A model of the class and config that was trained, for its names.

    Raises:
        UserError: The folder holds no checkpoint of this model, or a damaged one.
    """
    check_trusted(folder)
    if damage := find_damage(folder):
        raise UserError(f"{folder} is damaged ({damage}); export another checkpoint, by its --step")
    states = sorted(folder.glob("*model_states.pt"))
    if not states:
        raise UserError(f"{folder}: no DeepSpeed checkpoint in it")
    # these are this program's own files, with its optimizer, and no weights from outside
    state = torch.load(states[0], map_location="cpu", weights_only=False)
    tensors = dict(state["module"])  # below stage 2, fp32 training keeps frozen parameters nowhere else
    names = read_manifest(folder)["groups"]
    parameters = {f"{PREFIX}{name}": parameter for name, parameter in model.named_parameters()}
    known = all(name in parameters or not name.startswith(PREFIX) for group in names for name in group)
    if not known:
        raise UserError(
            f"{folder}: another model's checkpoint: its parameters differ from those that config.json describes"
        )
    # parameters that are no part of the model, such as a projection between widths, come last in
    # their group
    groups = [[parameters[name] for name in group if name in parameters] for group in names]
    shards = sorted(folder.glob("*zero_pp_rank_*optim_states.pt"), key=_parse_rank)
    if (
        shards
        and SINGLE_PARTITION_OF_FP32_GROUPS in (first := _load_optimizer_state(shards[0]))
        and "zero_stage" not in first
    ):
        # this is bf16's own optimizer, which DeepSpeed's converter does not know
        parts = [
            optimizer[SINGLE_PARTITION_OF_FP32_GROUPS] for optimizer in (first, *map(_load_optimizer_state, shards[1:]))
        ]
        masters = _unflatten([torch.cat(flats) for flats in zip(*parts, strict=True)], groups)
    elif shards:
        with regex_safe_path(folder.parent) as parent, silent_converters():
            tensors |= get_fp32_state_dict_from_zero_checkpoint(str(parent), tag=folder.name)
        masters = {}
    else:
        masters = _unflatten(_group_masters(state.get("optimizer") or {}), groups)
    tensors |= {f"{PREFIX}{name}": masters[id(p)] for name, p in model.named_parameters() if id(p) in masters}
    if (folder / FROZEN).is_file():
        tensors |= load_file(folder / FROZEN)
    weights: dict[str, Any] = {name: tensors.get(f"{PREFIX}{name}") for name, _ in model.named_parameters()}
    missing = [
        name for name, value in weights.items() if value is None or value.shape != model.get_parameter(name).shape
    ]
    if missing:
        raise UserError(f"{folder}: holds no {missing[0]} of the shape in config.json: another model's checkpoint")
    return {name: value.detach().float().clone() for name, value in weights.items()}


def _parse_rank(file: Path) -> int:
    return int(cast(re.Match, re.search(r"pp_rank_(\d+)", file.name))[1])


def _load_optimizer_state(shard: Path) -> dict:
    return torch.load(shard, map_location="cpu", weights_only=False)["optimizer_state_dict"]


def _group_masters(optimizer: dict) -> list[Tensor]:
    """Return the flat fp32 masters of DeepSpeed's stage-0 16-bit optimizers, one per group; none in fp32 training."""
    if "fp32_groups_flat" in optimizer:
        return optimizer["fp32_groups_flat"]
    return [torch.cat([piece.flatten() for piece in group]) for group in optimizer.get("fp32_groups", [])]


def _unflatten(flats: list[Tensor], groups: Sequence[Sequence[Tensor]]) -> dict[int, Tensor]:
    """Split flat masters, perhaps padded at the end, into each parameter's master, by the parameter's id."""
    masters: dict[int, Tensor] = {}
    if flats:
        for flat, group in zip(flats, groups, strict=True):
            sizes = [parameter.numel() for parameter in group]
            pieces = flat[: sum(sizes)].split(sizes)
            masters |= {
                id(parameter): piece.view(parameter.shape) for parameter, piece in zip(group, pieces, strict=True)
            }
    return masters
