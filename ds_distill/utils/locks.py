"""A lock that lets one process at a time use an output folder."""

import fcntl
from collections.abc import Callable
from pathlib import Path

from ds_distill.utils.errors import UserError


def try_lock(file, output: Path, holder: Callable[[], str], shared: bool = False) -> None:
    """Lock an open file, or folder, until it is closed or this process ends.

    Args:
        file: The open file or folder.
        output: The folder that the error names.
        holder: Returns the holder's name for the error.
        shared: Whether to keep out only those who want the lock for themselves.

    Raises:
        UserError: Another process holds the lock.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{output}: in use by {holder()}; wait until it has finished, or choose another --output"
        ) from None
