"""Whether a checkpoint can only have been written by this user: loading one runs what is pickled in it."""

import grp
import os
import pwd
import stat
import tempfile
from pathlib import Path

from ds_distill.utils.errors import UserError

_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


def close_to_others(path: Path) -> None:
    """Take the permission to write a file or folder away from the group and others.

    With the umask 002 of many clusters a shared group could write it.
    """
    path.chmod(stat.S_IMODE(path.stat().st_mode) & ~_WRITABLE)


def check_trusted(folder: Path) -> None:
    """Raise UserError where somebody else may have put something into a checkpoint.

    That is where it, or a file in it, belongs to neither this user nor root, or where others or a
    group that is not this user's alone may write it. The folders above need no check: what somebody
    puts there in place of the checkpoint belongs to that user.
    """
    own = _own_ids(folder.parent)
    for path in (folder, *sorted(folder.rglob("*"))):
        facts = path.stat()
        if facts.st_uid not in own:
            raise UserError(
                f"{path}: belongs to {_user(facts.st_uid)}, and resuming from it would run any code that its owner has "
                f"put into it; start as that user, or, if you trust every file, run `chown -R {_user(os.geteuid())} "
                f"{folder}` first"
            )
        if facts.st_mode & stat.S_IWOTH or (facts.st_mode & stat.S_IWGRP and not _is_private(facts.st_gid)):
            raise UserError(
                f"{path}: other users may write it, and resuming from it would run any code that they have put into "
                f"it; if you trust every file, run `chmod -R go-w {folder}` first"
            )


def _own_ids(folder: Path) -> set[int]:
    """Return the user ids that are this user's in a folder, and root's.

    A network file system may give this user's files another id, for example root's those of nobody.
    """
    own = {0, os.geteuid()}
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".owner-") as probe:
            own.add(os.stat(probe.name).st_uid)
    except OSError:  # a folder that can be read only, as `export` may be given
        pass
    return own


def _is_private(group: int) -> bool:
    """Return whether a group is this user's own: the group of the user's name, which most systems make for each."""
    try:
        found = grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == _user(os.geteuid()) and not set(found.gr_mem) - {found.gr_name}


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # in a container, for example
        return str(number)
