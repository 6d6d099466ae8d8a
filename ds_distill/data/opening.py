"""Files as uncompressed streams of bytes, of which a part may be read."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path

from ds_distill.data.remote import RemoteFile, file_state
from ds_distill.utils.errors import UserError

HEAD = 1 << 16


class _Counting(io.RawIOBase):
    """A byte stream that ends at `stop` and reports how far the underlying file was read."""

    def __init__(self, path: Path | RemoteFile, start: int, stop: int | None, tick: Callable[[int], None]):
        self.file, self.start, self.tick = path.open("rb"), start, tick
        self.stop = file_state(path)[0] if stop is None else stop
        self.file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.file.read(min(len(buffer), self.stop - self.file.tell()))
        self.tick(self.file.tell() - self.start)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def open_unpacked(
    path: Path | RemoteFile,
    packed: str,
    start: int = 0,
    stop: int | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> io.BufferedReader | gzip.GzipFile:
    """Open bytes [start, stop) of a file as an uncompressed stream.

    Args:
        path: The file.
        packed: ".gz", ".zst", or anything else for a plain file.
        start: Offset of the first byte.
        stop: Offset behind the last byte; the file's end without it.
        tick: Called with the bytes of the file read so far.
    """
    raw: io.BufferedReader = io.BufferedReader(_Counting(path, start, stop, tick), 1 << 18)
    if packed.lower() == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if packed.lower() == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 18)
    return raw


def read_head(path: Path | RemoteFile, packed: str) -> bytes:
    """Return the first 64 KiB of a file, uncompressed."""
    with open_unpacked(path, packed) as stream:
        return stream.read(HEAD)


def unreadable(path: Path | RemoteFile | str, error: Exception) -> UserError:
    """Return the UserError for a file that failed while it was read."""
    if "requires too much memory for decoding" in str(error):
        unpack = f"zstd -dc --long=31 {path}"
        return UserError(
            f"{path}: cannot be read, because it was compressed with a window of more than 128 MiB (zstd --long); "
            f"decompress it ({unpack} > NEW), or read it through a pipe: --corpus <({unpack})"
        )
    return UserError(f"{path}: cannot be read ({error}); replace the file, or remove it from the corpus")
