"""Where a disk or memory ends: one sentence, in place of what the libraries raise."""

import contextlib
import errno
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from ds_distill.utils.errors import UserError


@contextlib.contextmanager
def explain_disk_full(folder: Path):
    """A write that breaks off for want of room is a UserError: torch's own is a RuntimeError about positions in a file, safetensors' one of its own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = (
            error.errno in (errno.ENOSPC, errno.EDQUOT)
            if isinstance(error, OSError)
            else shutil.disk_usage(folder).free < 2**20
        )
        if not full:
            raise
        raise UserError(
            f"{folder}: the disk is full; make room there, and the same command goes on from the last checkpoint"
        ) from error


@contextlib.contextmanager
def explain_out_of_memory(what: str):
    """Where memory ends, GPU's or CPU's, the UserError `what`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(f"out of memory at {what}") from error
