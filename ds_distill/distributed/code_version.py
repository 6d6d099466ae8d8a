"""The code that a rank runs, compared among all ranks: a host with another checkout or library would train along."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from ds_distill import __version__
from ds_distill.utils.errors import UserError
from ds_distill.utils.machine import package_versions

PACKAGES = ("torch", "transformers", "deepspeed", "tokenizers", "numpy")


def describe_code() -> dict[str, str]:
    """Return the host of this process, and the versions of its code: this package's with a hash of its source."""
    package = {"host": socket.gethostname(), "ds-distill": f"{__version__} (source {hash_source()})"}
    return package | package_versions(PACKAGES)


def hash_source(folder: Path = Path(__file__).parents[1]) -> str:
    """Return a hash of the Python files below a folder.

    Unlike a commit's it is that of what runs: edits count, and an installed package has it too.
    """
    digest = hashlib.blake2b(digest_size=6)
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def check_same_code(ranks: Sequence[Mapping[str, str]]) -> None:
    """Raise UserError for the first rank whose code differs from that of the first rank.

    Args:
        ranks: `describe_code` of each rank.
    """
    first = ranks[0]
    for rank, other in enumerate(ranks):
        for name in {**first, **other}:
            if name != "host" and first.get(name) != other.get(name):
                raise UserError(
                    f"rank {rank} (host {other['host']}) has {name} {other.get(name, 'not installed')}, but rank 0 "
                    f"(host {first['host']}) has {first.get(name, 'none')}: every host needs the same checkout and "
                    "packages"
                )
