"""A check that a compiled file was written to its end."""

import os
import struct
import sys
from pathlib import Path


def is_complete_elf(file: Path) -> bool:
    """Return whether a compiled library or object is complete.

    Loading a truncated library ends the process with SIGBUS, so this is called first. The linker
    writes the table of sections at the end of the file, and last of all the header, which states
    where that table is. macOS has its own format, whose loader refuses truncated files, so there
    every file counts as complete.
    """
    if sys.platform == "darwin":
        return True
    try:
        with open(file, "rb") as stream:
            header = stream.read(64)
            size = os.fstat(stream.fileno()).st_size
    except OSError:
        return False
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02"):  # torch is built for 64 bits only
        return False
    order = "<" if header[5] == 1 else ">"
    (section_table,) = struct.unpack_from(order + "Q", header, 40)
    entry_size, entries = struct.unpack_from(order + "HH", header, 58)
    return section_table > 0 and section_table + entry_size * entries <= size
