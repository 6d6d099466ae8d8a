"""Files of other file systems, such as s3://, gs:// and https://, which the library fsspec opens."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from ds_distill.utils.errors import UserError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_BLOCK = 4 << 20  # bytes that are fetched at once
# What the file systems tell of a file that changes with its content.
_STATE = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "generation", "created")


def is_url(name: str | Path) -> bool:
    """Return whether an input's name begins with the protocol of a file system."""
    return isinstance(name, str) and bool(_URL.match(name))


def corpus_file(name: str) -> Path | RemoteFile:
    """Return the file that a piece of a corpus is in: a path, or a file of another file system."""
    return RemoteFile(name) if is_url(name) else Path(name)


def file_state(file: Path | RemoteFile) -> list[Any]:
    """Return the size of a file, with its time of modification or tag; this changes when the file is written anew."""
    if isinstance(file, RemoteFile):
        info = file.info()
        return [file.size, *(f"{key} {info[key]}" for key in _STATE[1:] if info.get(key) is not None)]
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class RemoteFile:
    """A file of another file system; it has those attributes of a Path that readers use."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path, without the query of a web address."""
        path = urlsplit(self.url).path if self.url.startswith("http") else self.url
        return unquote(PurePosixPath(path).name)

    @property
    def suffix(self) -> str:
        """The name's last suffix."""
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes of the name."""
        return PurePosixPath(self.name).suffixes

    @property
    def size(self) -> int:
        """The size in bytes.

        Raises:
            UserError: If the file cannot be reached, or its server does not tell.
        """
        size = self.info().get("size")
        if size is None:
            raise UserError(f"{self.url}: the server does not tell its size; download the file, and name the copy")
        return int(size)

    def info(self) -> dict[str, Any]:
        """Return what the file system tells of the file; raise UserError if it cannot be reached."""
        with _reaching(self.url):
            files, path = _file_system(self.url)
            return files.info(path)

    def open(self, mode: str = "rb", block: int = _BLOCK) -> BinaryIO:
        """Open the file for reading, `block` bytes at a time; raise UserError if it cannot be reached."""
        with _reaching(self.url):
            files, path = _file_system(self.url)
            return io.BufferedReader(_Raw(files.open(path, "rb", block_size=block)), 1 << 16)


class _Raw(io.RawIOBase):
    """An open file of fsspec, whose errors are OSErrors, whatever library they come from."""

    def __init__(self, file):
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer) -> int:
        try:
            data = self._file.read(len(buffer))
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def list_remote(given: str) -> tuple[list[RemoteFile], bool]:
    """Return the files that a URL names, which may be a file, a folder or a pattern, and whether it names just one.

    Raises:
        UserError: If it cannot be reached, or a package for its protocol is missing.
    """
    with _reaching(given):
        files, path = _file_system(given)
        is_web = given.startswith("http")  # where any page may look like a folder of its links
        if not is_web and re.search(r"[*?\[]", path) and not files.exists(path):
            paths = sorted(match for match in files.glob(path) if files.isfile(match))
        elif not is_web and files.isdir(path):
            paths = sorted(files.find(path))
        elif files.exists(path):
            return [RemoteFile(given)], True
        else:
            paths = []
        return [RemoteFile(files.unstrip_protocol(found)) for found in paths], False


def _file_system(url: str):
    """Return (the file system, the path in it) of a URL."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


@contextlib.contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turn the errors of any file system into a UserError with a remedy."""
    protocol = url.split("://")[0]
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        remedy = f"install {package}: pip install {package}" if package else str(error)
        raise UserError(f"{url}: a package for {protocol}:// is not installed; {remedy}") from error
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file or folder; check the address") from error
    except Exception as error:  # Each library has classes of its own.
        line = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{url}: cannot be reached ({type(error).__name__}: {line}); check the address, the network, and the "
            f"credentials that {_PACKAGES.get(protocol, 'fsspec')} reads from the environment"
        ) from error
