"""Terminals and file systems that are not UTF-8, and standard output or error that somebody closed.

What cannot be shown is replaced, and names of files are read as UTF-8.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


def show_what_can_be_shown() -> None:
    """Have standard output and error replace a character that their encoding lacks, instead of raising an error.

    What is written where one is closed (`2>&-`) goes nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # a notebook's or a test's may be of another kind
            stream.reconfigure(errors="replace")


def restart_in_utf8() -> None:
    """Start this program anew in Python's UTF-8 mode where file names are decoded otherwise.

    The C locale with that mode switched off is such a place. The libraries written in Rust and C++ take file names as
    UTF-8 in any case, and would write `läuft` elsewhere or not at all. Called by programs at their start, never by
    what is imported.
    """
    if sys.getfilesystemencoding().lower() in ("utf-8", "utf8"):
        return
    os.environ["PYTHONUTF8"] = "1"
    if sys.stderr is not None:  # the terminal stays what it is
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stderr.encoding}:replace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def outlive_broken_streams() -> None:
    """Have the program go on where standard output or error can no longer be written: a pipe without a reader, a full disk.

    The work of hours must not end for a line of its log. Called by programs at their start, as restart_in_utf8 is.
    """
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:
            setattr(sys, name, _Outliving(stream))


class _Outliving:
    """A text stream of which what cannot be written is lost, from the first error on."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._outlived():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._outlived():
            self._stream.flush()

    @contextlib.contextmanager
    def _outlived(self):
        try:
            yield
        except OSError:
            # what waits in the stream's buffer goes nowhere too, also when Python flushes it at its end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
