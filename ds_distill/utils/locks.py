"""One process at a time."""

import fcntl
from collections.abc import Callable
from pathlib import Path

from ds_distill.utils.errors import UserError


def try_lock(file, output: Path, who: Callable[[], str]) -> None:
    """Lock an open file, or folder, until it is closed, or this process is gone. UserError where another has it: `who` is at `output`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{output}: {who()} is at it; wait for it, or choose another --output") from None
