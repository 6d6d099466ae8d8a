"""Terminals and file systems that are not UTF-8, and standard output or error that somebody closed.

What cannot be shown is replaced, and names of files are read as UTF-8.
"""

from __future__ import annotations

import os
import sys


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
