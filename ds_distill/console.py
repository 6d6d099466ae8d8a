"""What a person at the terminal sees: one voice, the first rank's, on standard error. Standard output belongs to results."""

import os
import sys

from tqdm import tqdm


def is_first() -> bool:
    """Whether this process is the job's first rank, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    if is_first():
        print(text, file=sys.stderr, flush=True)


def progress(total: int | None, what: str, unit: str, *, initial: int = 0) -> tqdm:
    """A progress bar, silent on other ranks; unit "B" or "char" is scaled to k and M. Without a total it shows rate and time only."""
    scaled = unit in ("B", "char", "token")
    return tqdm(total=total, initial=initial, desc=what, unit=unit if unit == "B" else f" {unit}", unit_scale=scaled, file=sys.stderr,
                disable=not is_first(), mininterval=0.5, dynamic_ncols=True)  # fmt: skip
