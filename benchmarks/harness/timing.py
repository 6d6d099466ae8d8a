"""The clock that the benchmarks share."""

import time
from collections.abc import Callable

import torch


def timed(job: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `job` takes, including its work on the device."""
    began = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
