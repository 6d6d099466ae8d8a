"""Where compiled code is kept: with the environment, or on the host itself where the environment is on a network."""

import getpass
import os
import stat
import sys
import tempfile
from pathlib import Path

_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "weka", "glusterfs", "orangefs", "pvfs", "afs")
_private: dict[str, Path] = {}  # folders of this process, by name, where a user's own could not be had


def is_on_network(path: str | Path, mounts: str = "/proc/mounts") -> bool:
    """Return whether a path is on a file system that hosts share.

    Compilers of several hosts must not write into one folder there: locks between hosts are missing
    or slow, and a file that another host replaces is lost to its readers.

    Args:
        path: The path; it need not exist.
        mounts: The kernel's table of mounts.
    """
    resolved, kind, deepest = Path(path).resolve(), "", -1
    try:
        lines = Path(mounts).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not on Linux
        return False
    for line in lines:
        _, place, this_kind, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        if len(place) >= deepest and resolved.is_relative_to(place):
            kind, deepest = this_kind.removeprefix("fuse."), len(place)
    return kind.startswith(_NETWORK)


def environment_folder(name: str) -> Path | None:
    """Return the folder of this name in the virtual environment; None without one, or where it cannot be written."""
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix, name)
    return None


def host_folder(name: str) -> Path:
    """Return a folder of this user on this host, made where it is absent.

    Others may not write into it, since what is in it is run: a folder that somebody else has made
    under this name gives way to a new one.
    """
    folder = Path(tempfile.gettempdir(), f"{name}-{getpass.getuser()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    own = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o022
    if not own and name not in _private:
        _private[name] = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    return folder if own else _private[name]
