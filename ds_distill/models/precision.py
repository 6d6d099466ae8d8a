"""The number format in which a machine computes fastest."""

from __future__ import annotations

import functools
import time

import torch


def teacher_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a frozen teacher beside a student of `dtype`.

    It is fp16 on a GPU, and the student's on a CPU, where fp16 is slow.
    """
    return torch.float16 if device.type == "cuda" else dtype


@functools.cache
def choose_cpu_dtype() -> torch.dtype:
    """Return bf16 where this CPU multiplies at least 1.2 × faster in it than in fp32, else fp32.

    The measured product is 512 × 768 × 768. The measurement takes at most 1 s, once. It may come
    out differently on two ranks, so with several ranks one measures and tells the others.
    """
    seconds = _product_seconds((torch.float32, torch.bfloat16))
    return torch.bfloat16 if seconds[torch.float32] > 1.2 * seconds[torch.bfloat16] else torch.float32


@torch.no_grad()
def _product_seconds(dtypes: tuple[torch.dtype, ...], budget: float = 0.6) -> dict[torch.dtype, float]:
    """Return the shortest time of a product in each dtype, alternating for `budget` seconds, at least three times."""
    operands = {
        dtype: (torch.full((512, 768), 0.5, dtype=dtype), torch.full((768, 768), 0.5, dtype=dtype)) for dtype in dtypes
    }
    best, end, rounds = dict.fromkeys(dtypes, float("inf")), time.perf_counter() + budget, 0
    threads = torch.get_num_threads()
    # on a busy machine several threads wait for each other, and the ratio was then anything from
    # 0.5 to 10
    torch.set_num_threads(1)
    try:
        while rounds < 3 or time.perf_counter() < end:
            for dtype, (left, right) in operands.items():
                start = time.perf_counter()
                torch.nn.functional.linear(left, right)
                best[dtype] = min(best[dtype], time.perf_counter() - start)
            rounds += 1
    finally:
        torch.set_num_threads(threads)
    return best
