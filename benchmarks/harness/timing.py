"""The clock that benchmarks share."""

import time
from collections.abc import Callable

import torch


def timed(job: Callable[[], object], device: torch.device) -> float:
    """Seconds that `job` takes, its work on the device included."""
    began = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
