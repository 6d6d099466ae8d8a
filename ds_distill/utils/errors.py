"""Mistakes that the user can correct, and the messages about them."""

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path

# exit status of a process that has lost another rank, the network or its lock: the same command may succeed
LOST_STATUS = 3


class UserError(Exception):
    """A mistake that the user can correct: one sentence that names the key or file, the value and the remedy."""


class StoppedError(UserError):
    """A run that was asked to end and has saved: the same command resumes it.

    `STATUS` is the exit status of its processes, which tells a scheduler to start the job again. It is
    EX_TEMPFAIL of sysexits.h.
    """

    STATUS = 75


class RankError(UserError):
    """A mistake that this rank alone has found before it joined the others, so that it must report it itself."""


def get_message(error: UserError | OSError, place: str = "input or output", remedy: str = "") -> str:
    """Return the message of an error; a full or read-only disk is the user's to correct too.

    Args:
        error: The error.
        place: What to name where the error of the system names no file.
        remedy: What helps against an error of the system, unless it is no matter of the file.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "raise the limit with ulimit -n"
    return "; ".join(filter(None, (f"{error.filename or place}: {error.strerror or error}", remedy)))


def is_disk_full(error: Exception) -> bool:
    """Return whether a write failed because the disk is full; each library has its own error for that.

    Shared memory is not meant, which libraries report in the same words.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return not str(error.filename).startswith("/dev/shm")
    return "/dev/shm" not in str(error) and any(
        words in str(error) for words in ("No space left on device", "Disk quota exceeded")
    )


def expand_user(path: str) -> Path:
    """Return `path` with ~ and ~NAME expanded; raise UserError for the home of an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}; write the full path") from None


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """Return the end of an error that names `word`: the nearest of `known` in any case, or nothing if none is near."""
    near = nearest_name(word, known, cutoff)
    return f"; did you mean {near}?" if near else ""


def nearest_name(word: str, known: Iterable[str], cutoff: float = 0.4) -> str | None:
    """Return the one of `known` that is most like `word` in any case; None where none is near."""
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), list(names), n=1, cutoff=cutoff)
    return names[near[0]] if near else None
