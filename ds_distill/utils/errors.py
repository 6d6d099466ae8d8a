"""Mistakes that are the user's to put right, and how they are said."""

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake the user can put right: one sentence that names the key or file, the value and the remedy."""


def message_of(error: UserError | OSError) -> str:
    """What is said of it: a full or read-only disk is the user's to put right too."""
    return (
        str(error)
        if isinstance(error, UserError)
        else f"{error.filename or 'input or output'}: {error.strerror or error}"
    )


def is_disk_full(error: Exception) -> bool:
    """Whether a write broke off for want of room: each library has an error of its own for that."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))


def expand_user(path: str) -> Path:
    """`path` with ~ and ~NAME for what they stand for. UserError for the home of nobody."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {str(error).rstrip('.')}; write the folder out") from None


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.4) -> str:
    """What an error that names `word` goes on with: the nearest of `known`, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""
