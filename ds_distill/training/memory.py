"""What the C library does with memory that is given back to it."""

import ctypes
import sys

# malloc.h of glibc: not one mapping an allocation, the heap never trimmed, grown by 64 MiB, one heap for all threads
_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 64 << 20), "M_ARENA_MAX": (-8, 1)}


def keep_freed_memory() -> None:
    """Have this process keep what it frees for its next allocation. A step frees and takes gigabytes, all of whose pages the system would else map
    and clear anew: a tenth of a step on a CPU (docs/PERFORMANCE.md). Only with glibc; elsewhere nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for key, value in _MALLOPT.values():
            mallopt(key, value)


def give_back_freed_memory() -> None:
    """The contrary, once: what is free goes back to the system now."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
