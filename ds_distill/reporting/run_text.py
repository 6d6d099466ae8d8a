"""What a terminal shows of a run, in words: its device, its models and large numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_distill.models.families import FAMILIES
from ds_distill.utils.articles import counted

if TYPE_CHECKING:  # the end of a command need not wait for torch
    import torch
    from transformers import PretrainedConfig


def describe_device(device: torch.device, ranks: int) -> str:
    """Return a job's devices, such as "2 × NVIDIA H100 80GB HBM3" or "CPU with 8 cores, 2 ranks"."""
    import torch

    from ds_distill.utils.machine import cores

    if device.type == "cuda":
        return f"{ranks} × {torch.cuda.get_device_name(device)}"
    return f"CPU with {counted(cores(), 'core')}{f', {ranks} ranks' if ranks > 1 else ''}"


def describe_model(config: PretrainedConfig, parameters: int) -> str:
    """Return the kind and the sizes of an encoder."""
    dims = FAMILIES[config.model_type].dims(config)
    return f"{config.model_type}, {counted(dims.depth, 'layer')} × {dims.width}, {millions(parameters)} parameters"


def millions(number: float) -> str:
    """Return a large number in millions, such as 66.4 M, and a small one as it is."""
    return f"{number / 1e6:,.1f} M" if number >= 1e6 else f"{number:,.0f}"
