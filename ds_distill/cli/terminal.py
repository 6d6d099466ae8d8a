"""Handling of terminals and file systems that are not UTF-8, and of a closed standard output or error.

Characters that cannot be shown are replaced, and file names are read as UTF-8.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


def replace_unencodable_characters() -> None:
    """Have standard output and error replace a character that their encoding lacks, instead of raising an error.

    Output to a closed one (`2>&-`) is discarded.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # a notebook's or a test's stream may be of another kind
            stream.reconfigure(errors="replace")


def restart_in_utf8() -> None:
    """Restart this program in Python's UTF-8 mode where file names are decoded otherwise.

    The C locale with that mode switched off is such a case. Libraries written in Rust and C++ take
    file names as UTF-8 in any case, and would write `läuft` elsewhere or not at all. Programs call
    this at their start; imported modules never do.
    """
    if sys.getfilesystemencoding().lower() in ("utf-8", "utf8"):
        return
    os.environ["PYTHONUTF8"] = "1"
    if sys.stderr is not None:  # the terminal keeps its encoding
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stderr.encoding}:replace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def tolerate_broken_streams() -> None:
    """Keep the program running where standard output or error can no longer be written.

    Examples are a pipe without a reader and a full disk. Hours of work must not end because of a
    line of the log. Programs call this at their start, as they do restart_in_utf8.
    """
    for name in ("stdout", "stderr"):
        if (stream := getattr(sys, name)) is not None:
            setattr(sys, name, _TolerantStream(stream))


class _TolerantStream:
    """A text stream that discards what cannot be written, from the first error on."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._discarding_on_error():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._discarding_on_error():
            self._stream.flush()

    @contextlib.contextmanager
    def _discarding_on_error(self):
        try:
            yield
        except OSError:
            # the stream's buffer is discarded too, also when Python flushes it at its end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
