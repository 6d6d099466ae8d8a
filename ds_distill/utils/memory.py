"""How much memory this process has taken, and how the C library treats memory that is freed."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a process that only runs an exported file must not have torch's memory
    import torch

# The values of glibc's malloc.h: the heap is never trimmed, grows by 16 MiB, and is one for all
# threads.
_MALLOPT = {"M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 16 << 20), "M_ARENA_MAX": (-8, 1)}
# Without the largest blocks, each allocation from 32 MiB on (the threshold's maximum) gets its own
# mapping. Else holes in the heap add up to half a step's memory within ten steps. With them, there
# are no mappings at all.
_LARGEST = {False: {"M_MMAP_THRESHOLD": (-3, 32 << 20)}, True: {"M_MMAP_MAX": (-4, 0)}}


def retain_freed_memory(largest: bool = False) -> None:
    """Have this process keep what it frees for its next allocation, the largest blocks only with `largest`.

    A step frees and allocates gigabytes, whose pages the system would otherwise map and clear anew
    (docs/benchmarks.md). This works only with glibc; elsewhere nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for key, value in (_MALLOPT | _LARGEST[largest]).values():
            mallopt(key, value)


def trim_heap() -> None:
    """Return free memory to the system now, once; the opposite of `retain_freed_memory`."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def memory_limit() -> int:
    """Return the bytes that processes here may have: the machine's, or fewer where a container allows fewer."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # version 2, version 1
        with contextlib.suppress(OSError, ValueError):  # ValueError for "max"
            limits.append(int(Path(file).read_text(encoding="utf-8")))
    return min(limits)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes this process has held so far: the allocator's on CUDA, the resident set on a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_resident()


def peak_resident() -> int:
    """Return the most bytes this process has had in memory so far."""
    with contextlib.suppress(OSError, StopIteration):
        # getrusage has the peak of the process that started this one, where that is larger
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
