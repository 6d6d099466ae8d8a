"""The files that an input names: the file itself, those of a folder or a pattern, and data from a pipe."""

from __future__ import annotations

import atexit
import glob
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ds_distill.data.remote import RemoteFile, file_state, is_url, list_remote
from ds_distill.utils.console import TRACE, log, log_once_per_process
from ds_distill.utils.errors import UserError, expand_user

FILE_FORMATS = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
COMPRESSED_SUFFIXES = (".gz", ".zst")
UNSUPPORTED_SUFFIXES = (".bz2", ".xz", ".zip", ".7z", ".tar", ".pdf", ".docx")
# Files of these names accompany the rows in a data set's folder.
ABOUT = (
    "README",
    "LICENSE",
    "LICENCE",
    "COPYING",
    "NOTICE",
    "CHANGELOG",
    "MANIFEST",
    "SHA",
    "MD5",
    "CHECKSUM",
    "_SUCCESS",
)
METADATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json")
_DESCRIPTORS = ("/dev/fd/", "/dev/std", "/proc/self/fd/")
_HEAD = 1 << 16


def get_file_kind(name: str) -> str | None:
    """Return the kind of a file by its name, without the suffix of compression; None for an unknown kind."""
    suffixes = [s.lower() for s in Path(name).suffixes if s.lower() not in COMPRESSED_SUFFIXES]
    return {**FILE_FORMATS, ".arrow": "arrow"}.get(suffixes[-1]) if suffixes else None


def resolve_files(given: str, column: str | None = None) -> list[Path] | list[RemoteFile]:
    """Return the files of an input: a file, a folder, a pattern or a pipe, or such a URL.

    The data from a pipe is copied into a file.

    Args:
        given: The input.
        column: The column that the input names, if it names one.

    Raises:
        UserError: If there is no file, or one cannot be reached.
    """
    if is_url(given):
        return _remote_files(given)
    given = "/dev/stdin" if given == "-" and not Path(given).exists() else given
    path = expand_user(given)
    if path.is_dir():
        files = _files_in(path)
        if not files:
            raise UserError(
                f"{given}: the folder contains no {', '.join(FILE_FORMATS)} file (plain, .gz or .zst); "
                f"name files, or give a pattern such as '{given}/*.md'"
            )
        return files
    # This comes before globbing, because a file's name may hold brackets.
    if path.exists():
        return [path if path.is_file() and not given.startswith(_DESCRIPTORS) else _from_descriptor(path, column)]
    if glob.has_magic(given):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        for match in matches:
            _check_reachable(match)
        folders = [match for match in matches if match.is_dir()]
        nested = (file for folder in folders for file in _files_in(folder))
        files = list(dict.fromkeys((*(match for match in matches if match.is_file()), *nested)))
        if not files:
            raise UserError(
                f"{given}: no file matches this pattern; check it (relative patterns start at {Path.cwd()})"
            )
        return files
    if given.startswith(_DESCRIPTORS):
        raise UserError(
            f"{given}: not open in this process, because a launcher's processes do not inherit pipes; run `ds-distill "
            "prepare` on the pipe first"
        )
    _check_reachable(path)
    raise UserError(f"{given}: no such file or folder; check the path (relative ones start at {Path.cwd()})")


def _remote_files(given: str) -> list[RemoteFile]:
    """Return the files of a URL; in a folder, or by a pattern, those of a known kind, as in `_files_below`."""
    found, is_one = list_remote(given)
    if is_one:
        return found
    folder = given.rstrip("/")
    shown = [file for file in found if "/." not in f"/{file.url.removeprefix(folder)}" and file.name not in METADATA]
    files = [file for file in shown if get_file_kind(file.name) not in (None, "arrow")]
    if not files:
        raise UserError(
            f"{given}: no {', '.join(FILE_FORMATS)} file (plain, .gz or .zst) is there; check the address and the "
            "credentials"
        )
    if others := [file.name for file in shown if file not in files and not file.name.upper().startswith(ABOUT)]:
        log_once_per_process(f"{given}: {len(others):,} of its files are not read, such as {', '.join(others[:3])}")
    return files


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a known kind in a folder, and log the others where they are more than a trace."""
    others: list[Path] = []
    files = sorted(_files_below(folder, others))
    if files and others:
        _log_others(folder, files, others)
    if (folder / "dataset_dict.json").is_file():
        splits = sorted({file.parent.name for file in files if saved_files(file.parent)})
        if len(splits) > 1:
            log_once_per_process(
                f"{folder}: all of its splits are read: {', '.join(splits)}; to read one of them, use "
                f"hf:{folder}@{splits[-1]}"
            )
    return files


def _log_others(folder: Path, readable: list[Path], others: list[Path]) -> None:
    """Log which files of a folder are not read, where they are more than a trace."""
    missing = [file for file in others if not file.exists()]
    sizes = [sum(file.stat().st_size for file in files if file.is_file()) for files in (readable, others)]
    packed = [file for file in others if file.suffix.lower() in UNSUPPORTED_SUFFIXES]
    if missing or packed or sizes[1] > TRACE * sum(sizes):
        kinds = Counter(file.suffix.lower() or "without a suffix" for file in others)
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
        names = ", ".join(file.name for file in list(dict.fromkeys([*missing, *packed, *others]))[:3])
        log_once_per_process(
            f"{folder}: {len(others):,} of its files are not read ({counts}), such as {names}; supported files are "
            f"{', '.join(FILE_FORMATS)}, plain, .gz or .zst; to read other files as text, name them or give a pattern"
        )


def _files_below(folder: Path, others: list[Path]) -> Iterator[Path]:
    """Yield the files of a known kind in a folder and its subfolders.

    Links are followed, each folder is visited once, and names that begin with a dot are skipped.
    The files that are not read are added to `others`.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: this folder of the corpus cannot be read ({error.strerror}); make it readable, or move "
            "it out of the corpus"
        )

    seen: set[tuple[int, int]] = set()
    for current, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:  # This is a link back up.
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        saved = saved_files(Path(current))
        yield from saved
        for name in files:
            file = Path(current, name)
            kind = get_file_kind(name)
            if name.startswith(".") or name in METADATA or (saved and (name == "state.json" or kind == "arrow")):
                continue
            # `datasets` has computed these from the rows.
            if kind == "arrow" and name.startswith(("cache-", "tmp")):
                continue
            if kind or not file.suffix:
                _check_reachable(file)
            # An Arrow file of unknown origin may be a table of indices.
            if kind and kind != "arrow" and file.is_file():
                yield file
            elif not name.upper().startswith(ABOUT):
                others.append(file)


def _check_reachable(file: Path) -> None:
    """Raise UserError for a link to nothing, or one that leads back to itself."""
    if file.is_symlink() and not file.exists():
        raise UserError(
            f"{file}: a link to {os.readlink(file)}, which does not exist; restore that file, or remove the link"
        )


def saved_files(folder: Path) -> list[Path]:
    """Return the files of rows of a data set that `datasets` wrote with save_to_disk.

    The list is empty for any other folder.
    """
    return [folder / entry["filename"] for entry in _saved_state(folder).get("_data_files", ())]


def saved_split(folder: Path, split: str | None) -> list[Path]:
    """Return the files of rows of one split of a data set that save_to_disk wrote.

    The split is "train" where none is named. The list is empty for any other folder.

    Raises:
        UserError: If the split does not exist.
    """
    if (folder / "dataset_dict.json").is_file():
        files, splits = (
            saved_files(folder / (split or "train")),
            [entry.name for entry in sorted(folder.iterdir()) if saved_files(entry)],
        )
    else:
        files, splits = saved_files(folder), [_saved_state(folder).get("_split") or "train"]
    if (folder / "dataset_dict.json").is_file() and not files or files and split not in (None, *splits):
        raise UserError(
            f"hf:{folder}: no split {split or 'train'!r}; its splits are {', '.join(splits) or 'none'}; choose one: "
            f"hf:{folder}@SPLIT"
        )
    return files


def _saved_state(folder: Path) -> dict:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return state if all(isinstance(entry["filename"], str) for entry in state["_data_files"]) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


# --- pipes -----------------------------------------------------------------------------------------------------------


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


def _from_descriptor(path: Path, column: str | None) -> Path:
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
        is_open = str(path).startswith(_DESCRIPTORS) and number.isdecimal()
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
        line = stream.readline(_HEAD).decode(errors="replace").removeprefix("\ufeff").strip()
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


# --- opening ---------------------------------------------------------------------------------------------------------


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
        return stream.read(_HEAD)


def unreadable(path: Path | RemoteFile | str, error: Exception) -> UserError:
    """Return the UserError for a file that failed while it was read."""
    if "requires too much memory for decoding" in str(error):
        unpack = f"zstd -dc --long=31 {path}"
        return UserError(
            f"{path}: cannot be read, because it was compressed with a window of more than 128 MiB (zstd --long); "
            f"decompress it ({unpack} > NEW), or read it through a pipe: --corpus <({unpack})"
        )
    return UserError(f"{path}: cannot be read ({error}); replace the file, or remove it from the corpus")
