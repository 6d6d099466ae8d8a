"""Errors for a full disk or memory: one sentence in place of what the libraries raise."""

import contextlib
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from ds_distill.utils.errors import UserError, is_disk_full


@contextlib.contextmanager
def explain_disk_full(folder: Path):
    """Turn a write that fails because the disk is full into a UserError.

    torch raises a RuntimeError about positions in a file, and safetensors an error of its own.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's error about positions in a file does not say why
        full = is_disk_full(error) or (not isinstance(error, OSError) and shutil.disk_usage(folder).free < 2**20)
        if not full:
            raise
        raise UserError(
            f"{folder}: the disk is full; free some space, and the same command resumes from the last checkpoint"
        ) from error


@contextlib.contextmanager
def explain_out_of_memory(activity: str):
    """Raise a UserError that names `activity` where a GPU's or the CPU's memory is exhausted."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(f"out of memory at {activity}") from error
