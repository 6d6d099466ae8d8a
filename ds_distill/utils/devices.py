"""The GPUs that a process may see."""

from __future__ import annotations

import itertools
import re


def visible_gpus(listed: str) -> list[str]:
    """Return the GPUs that a value of CUDA_VISIBLE_DEVICES names, by index or identifier, as CUDA reads it.

    CUDA stops at the first entry that names none, such as -1 or an empty one. It sees no GPU at all
    where one is named twice.
    """
    entries = (name.strip() for name in listed.split(","))
    names = list(itertools.takewhile(lambda name: re.match(r"\d|GPU-|MIG-", name), entries))
    return names if len(set(names)) == len(names) else []
