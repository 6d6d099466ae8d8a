"""The device and the precision that a process computes on, be it a rank of several or alone."""

import os

import torch

from ds_distill.distributed.launch_environment import gpu_index
from ds_distill.distributed.process_group import broadcast_object
from ds_distill.models.precision import DTYPES, choose_cpu_dtype
from ds_distill.recipe import Training
from ds_distill.utils.errors import UserError


def local_device(wanted: str = "auto") -> torch.device:
    """Return this rank's device; raise UserError where it cannot be the one that is asked for."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device = cuda: torch finds no GPU (see ds-distill env); use auto or cpu")
    if wanted == "cpu" and torch.cuda.is_available():
        raise UserError(
            "training.device = cpu: this process has used torch on a GPU before; start Python anew, or set "
            "CUDA_VISIBLE_DEVICES to nothing before it starts"
        )
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", gpu_index(int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def default_device() -> torch.device:
    """Return the device of a process that is no rank of several: the first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def resolve_dtype(training: Training, device: torch.device) -> torch.dtype:
    """Collective: return the trained model's dtype.

    Raises:
        UserError: fp16 is asked for on a CPU, where its GEMMs are tens of times slower.
    """
    if training.precision == "auto":
        if device.type == "cuda":  # GPUs before Ampere have no bf16 units
            return broadcast_object(
                torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
            )
        # a measurement may come out differently on two ranks
        return broadcast_object(choose_cpu_dtype() if torch.distributed.get_rank() == 0 else None)
    if training.precision == "fp16" and device.type == "cpu":
        raise UserError("training.precision = fp16: this machine has no GPU; use bf16, fp32 or auto")
    return DTYPES[training.precision]
