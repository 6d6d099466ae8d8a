"""Data from pipes, copied into files that several processes can read, and more than once."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ds_distill.data.opening import HEAD, open_unpacked
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError

DESCRIPTORS = ("/dev/fd/", "/dev/std", "/proc/self/fd/")


@dataclass(frozen=True)
class _Copy:
    path: Path
    digest: str


# Copies are kept by device and inode: a pipe can be read only once, but its input may be needed
# again.
_copies: dict[tuple[int, int], _Copy] = {}


def get_copy_digest(file: str) -> str | None:
    """Return the sha256 of a file that a pipe was copied into; None for any other file."""
    return next((copy.digest for copy in _copies.values() if str(copy.path) == file), None)


def file_of_descriptor(path: Path, column: str | None) -> Path:
    """Return the file behind an open descriptor, or a copy of the data from a pipe.

    Workers cannot open either of them.
    """
    status = path.stat()
    if stat.S_ISREG(status.st_mode) and (real := Path(os.path.realpath(path))).is_file():
        return real
    if stat.S_ISBLK(status.st_mode):
        raise UserError(f"{path}: a block device; give a file, a folder or a pipe")
    key = (status.st_dev, status.st_ino)
    if key not in _copies:
        number = {"/dev/stdin": "0", "/dev/stdout": "1", "/dev/stderr": "2"}.get(str(path), path.name)
        is_open = str(path).startswith(DESCRIPTORS) and number.isdecimal()
        with open(os.dup(int(number)), "rb") if is_open else path.open("rb") as stream:
            if stream.isatty():
                raise UserError(
                    f"{path}: a terminal, not a file or pipe; give a file, or pipe the text into the command"
                )
            _copies[key] = _copy_pipe(stream, path, column)
    return _copies[key].path


def _copy_pipe(stream: BinaryIO, name: Path, column: str | None) -> _Copy:
    folder = Path(tempfile.mkdtemp(prefix="ds-distill-pipe-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log(f"{name}: a pipe; copied into {folder}, which is deleted at the end (set TMPDIR to copy elsewhere)")
    file, digest = folder / "-".join(name.parts[1:]), hashlib.sha256()
    with file.open("wb") as copy:
        while block := stream.read(1 << 20):
            copy.write(block)
            digest.update(block)
    return _Copy(file.rename(file.with_name(file.name + _suffix(file, name, column))), digest.hexdigest())


def _suffix(file: Path, name: Path, column: str | None) -> str:
    """Return the suffix that a file's name should have, judged by its first bytes.

    `column` is the column to read, where one is named.
    """
    with file.open("rb") as stream:
        magic = stream.read(6)
    packed = ".gz" if magic.startswith(b"\x1f\x8b") else ".zst" if magic.startswith(b"\x28\xb5\x2f\xfd") else ""
    if magic.startswith(b"PAR1") or magic == b"ARROW1":
        return ".parquet" if magic.startswith(b"PAR1") else ".arrow"
    with open_unpacked(file, packed) as stream:
        line = stream.readline(HEAD).decode(errors="replace").removeprefix("\ufeff").strip()
    if line.startswith("{"):
        return f".jsonl{packed}"
    if column is None:
        return f".txt{packed}"
    for suffix, delimiter in ((".tsv", "\t"), (".csv", ",")):
        if column in [field.strip('"') for field in line.split(delimiter)]:
            return suffix + packed
    raise UserError(
        f"{name}#{column}: the data from the pipe is neither JSON lines nor csv or tsv with that column in its header; "
        "check the column"
    )
