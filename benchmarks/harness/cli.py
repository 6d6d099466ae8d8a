"""Check the options of a benchmark, and report why it or one of its processes cannot continue."""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ds_distill.cli.terminal import replace_unencodable_characters
from ds_distill.utils.console import close_bars
from ds_distill.utils.errors import StoppedError, UserError, get_message


@contextlib.contextmanager
def user_errors(program: str) -> Iterator[None]:
    """Turn a UserError or OSError into one sentence and exit status 2, and Ctrl-C into exit status 130.

    A run that was asked to end, and has saved, ends with the status of a StoppedError. Characters that the
    terminal cannot show are replaced.
    """
    replace_unencodable_characters()
    try:
        yield
    except (UserError, OSError) as error:
        close_bars()
        print(f"{program}: {get_message(error)}", file=sys.stderr)
        raise SystemExit(StoppedError.STATUS if isinstance(error, StoppedError) else 2) from None
    except KeyboardInterrupt:
        close_bars()
        print(f"\n{program}: stopped", file=sys.stderr)
        raise SystemExit(130) from None


def count(text: str) -> int:
    """Return an option's value as a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 1 or more")
    return int(text)


def amount(text: str) -> float:
    """Return an option's value as a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return value


def make_folder(option: str, folder: Path | None) -> None:
    """Create the folder that `option` names, if any, so that no measurement is lost because it cannot be written.

    Raises:
        UserError: If the folder cannot be created or is not writable.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: {error.strerror}; choose another folder") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {folder}: not writable; choose another folder")


def why_it_ended(status: int, log: str) -> str:
    """Return in one line why a process failed: the signal that killed it, or the last line that it logged."""
    if status < 0:
        return f"killed by signal {-status}{', probably because memory ran out' if status == -9 else ''}"
    lines = log.strip().splitlines() or [f"exit status {status}"]
    return lines[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")[:300]
