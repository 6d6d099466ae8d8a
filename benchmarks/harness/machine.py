"""Describe the machine that a benchmark runs on, and measure the memory that it takes."""

import gc
import itertools
import os
import threading
import time
from collections.abc import Callable

import psutil
import torch

from ds_distill.kernels.fused_linear import release_workspace
from ds_distill.utils.errors import UserError
from ds_distill.utils.machine import processor_name
from ds_distill.utils.memory import trim_heap


def describe(device: torch.device) -> str:
    """Return the processor or GPU, the number of cores and torch's version, in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor_name()}, {os.cpu_count()} cores"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def on_cpu_only() -> None:
    """Raise a UserError if torch sees a GPU.

    This is for benchmarks whose reference implementation and engine both run on the CPU.
    """
    if torch.cuda.is_available():
        raise UserError(
            "this benchmark is for CPUs; put CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu in front of the command"
        )


def bytes_in_use(device: torch.device) -> int:
    """Return the bytes in use by CUDA's own counter, or by this process's resident set."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    release_workspace()
    trim_heap()  # otherwise memory that an earlier run left behind would count as in use
    return psutil.Process().memory_info().rss


def peak_bytes(job: Callable[[], object], device: torch.device, before: int | None = None) -> int:
    """Return the most bytes in use while `job` runs, above `before`.

    Without `before`, the memory in use just before the job is subtracted. The source is CUDA's own
    counter, or the resident set sampled every 2 ms.
    """
    in_use = bytes_in_use(device)
    before = in_use if before is None else before
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        job()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    process, done, peak = psutil.Process(), threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    job()
    done.set()
    watcher.join()
    return max(0, peak - before)


def peak_allocated_bytes(job: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes that torch's allocator hands out while `job` runs, above those before it.

    On a CPU they are counted allocation by allocation, so that the result does not depend on what a process
    keeps, nor on the time between samples.
    """
    if device.type == "cuda":
        return peak_bytes(job, device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    in_use = [0, *itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda e: e.start_ns()))]
    return max(in_use)
