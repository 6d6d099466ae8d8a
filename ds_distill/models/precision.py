"""The number formats that models compute in: that of a teacher, and the one in which a CPU is fastest."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable

import torch

from ds_distill.utils.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def teacher_dtype(
    device: torch.device,
    dtype: torch.dtype,
    wanted: str = "auto",
    saved: torch.dtype | str | None = None,
) -> torch.dtype:
    """Return the dtype of a frozen teacher.

    On a CPU "auto" is the student's dtype. On a GPU it is fp32 beside an fp32 student. Beside a
    16-bit student it is fp16, whose rounding is an eighth of bf16's; but a checkpoint that was saved
    in bf16 was trained in it, and may have activations beyond fp16's 65,504, so it stays in bf16, or
    is cast to fp32 where the student's fp16 shows that the GPU has no bf16.

    Args:
        device: The device.
        dtype: The student's dtype.
        wanted: The recipe's training.teacher_precision.
        saved: The dtype that the teacher's config.json names.

    Raises:
        UserError: fp16 is asked for on a CPU, where it is tens of times slower.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("training.teacher_precision = fp16: this machine has no GPU; use bf16, fp32 or auto")
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type != "cuda" or dtype == torch.float32:
        return dtype
    if saved in (torch.bfloat16, "bfloat16"):
        return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    return torch.float16


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype of several teachers, whose logits are joined: the one of these with the widest range."""
    return max(dtypes, key=lambda dtype: (torch.finfo(dtype).max, torch.finfo(dtype).bits))


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
