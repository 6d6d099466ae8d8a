"""Small files that version control leaves in place of large ones that were not downloaded."""

import re
from pathlib import Path

from ds_distill.utils.errors import UserError

_LARGEST = 1024  # bytes; git-lfs itself takes no larger file for a pointer
_GIT_LFS = re.compile(
    rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/.*?^oid \w+:\w+.*?^size (\d+)",
    re.DOTALL | re.MULTILINE,
)
_GIT_ANNEX = re.compile(rb"/annex/objects/\S+\s*\Z")


def check_not_lfs_pointer(file: str | Path) -> None:
    """Raise UserError where `file` is a Git LFS or git-annex pointer to content that is not on this machine.

    At most 1 KiB is read, whatever the file is called. A file that cannot be read is left to its
    next reader.
    """
    try:
        with Path(file).open("rb") as stream:
            head = stream.read(_LARGEST + 1)
    except OSError:
        return
    if len(head) > _LARGEST:
        return
    if match := _GIT_LFS.match(head.removeprefix(b"\xef\xbb\xbf").lstrip()):
        raise UserError(
            f"{file}: a Git LFS pointer of {len(head)} bytes instead of the file of {int(match[2]):,} bytes; "
            f"run `git lfs pull` in {Path(file).absolute().parent}, or download the file itself"
        )
    if _GIT_ANNEX.match(head):
        raise UserError(
            f"{file}: a git-annex pointer of {len(head)} bytes instead of the file; "
            f"run `git annex get {Path(file).name}` in {Path(file).absolute().parent}, or download the file itself"
        )
