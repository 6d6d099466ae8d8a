"""The files that an input names: itself, those of a folder or a pattern, and what comes through a pipe."""

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

from ds_distill.utils.console import TRACE, log, log_once
from ds_distill.utils.errors import UserError, expand_user

KINDS = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".zst")
UNSUPPORTED = (".bz2", ".xz", ".zip", ".7z", ".tar", ".pdf", ".docx")
# What a data set's folder holds beside its rows.
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


def kind_of(name: str) -> str | None:
    """The kind of a file by its name, compression aside; None for an unknown one."""
    suffixes = [s.lower() for s in Path(name).suffixes if s.lower() not in COMPRESSED]
    return {**KINDS, ".arrow": "arrow"}.get(suffixes[-1]) if suffixes else None


def files_of(given: str, column: str | None = None) -> list[Path]:
    """The files of an input: a file, a folder, a pattern, or a pipe, which is copied into a file.

    column: the one that the input names, if it names one. Raises UserError where there is no file, or one that cannot be reached.
    """
    given = "/dev/stdin" if given == "-" and not Path(given).exists() else given
    path = expand_user(given)
    if path.is_dir():
        found = _files_in(path)
        if not found:
            raise UserError(
                f"{given}: the folder holds no {', '.join(KINDS)} file (.gz and .zst too); name files or a pattern such as '{given}/*.md'"
            )
        return found
    if path.exists():  # before globbing: a file's name may hold brackets
        return [path if path.is_file() and not given.startswith(_DESCRIPTORS) else _from_descriptor(path, column)]
    if glob.has_magic(given):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        for match in matches:
            _check_reachable(match)
        folders = [match for match in matches if match.is_dir()]
        below = (file for folder in folders for file in _files_in(folder))
        found = list(dict.fromkeys((*(match for match in matches if match.is_file()), *below)))
        if not found:
            raise UserError(
                f"{given}: no file matches this pattern; check it from the folder the command starts in ({Path.cwd()})"
            )
        return found
    if given.startswith(_DESCRIPTORS):
        raise UserError(
            f"{given}: not open in this process: a pipe does not reach those that a launcher starts; run `ds-distill prepare` on it"
        )
    _check_reachable(path)
    raise UserError(f"{given}: no such file or folder; check the path (relative ones start at {Path.cwd()})")


def _files_in(folder: Path) -> list[Path]:
    """The files of a known kind in a folder, and a line on the others where they are more than a trace."""
    others: list[Path] = []
    found = sorted(_files_below(folder, others))
    if not found:
        return []
    gone = [file for file in others if not file.exists()]
    sizes = [sum(file.stat().st_size for file in files if file.is_file()) for files in (found, others)]
    packed = [file for file in others if file.suffix.lower() in UNSUPPORTED]
    if gone or packed or sizes[1] > TRACE * sum(sizes):
        kinds = Counter(file.suffix.lower() or "without a suffix" for file in others)
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(5))
        names = ", ".join(file.name for file in list(dict.fromkeys([*gone, *packed, *others]))[:3])
        line = (
            f"{folder}: files in it that are not read: {len(others):,} ({counts}), such as {names}; "
            f"those read are {', '.join(KINDS)}, plain, .gz or .zst; name others, or a pattern of them"
        )
        log_once(line, line)
    if (folder / "dataset_dict.json").is_file():
        splits = sorted({file.parent.name for file in found if saved_files(file.parent)})
        if len(splits) > 1:
            line = f"{folder}: its splits {', '.join(splits)} are all read; hf:{folder}@{splits[-1]} reads one"
            log_once(line, line)
    return found


def _files_below(folder: Path, others: list[Path]) -> Iterator[Path]:
    """The files of a known kind in a folder and the folders in it, linked ones too, each folder once; nothing whose name begins with a dot.

    others: is given the files that are not read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: a folder of the corpus that cannot be read ({error.strerror}); make it readable or move it away"
        )

    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        facts = os.stat(here)
        if (facts.st_dev, facts.st_ino) in seen:  # a link back up
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        saved = saved_files(Path(here))
        yield from saved
        for name in files:
            file = Path(here, name)
            kind = kind_of(name)
            if name.startswith(".") or name in METADATA or (saved and (name == "state.json" or kind == "arrow")):
                continue
            if kind == "arrow" and name.startswith(("cache-", "tmp")):  # what `datasets` has computed from the rows
                continue
            if kind or not file.suffix:
                _check_reachable(file)
            # an Arrow file of unknown origin may be a table of indices
            if kind and kind != "arrow" and file.is_file():
                yield file
            elif not name.upper().startswith(ABOUT):
                others.append(file)


def _check_reachable(file: Path) -> None:
    """UserError for a link to nothing, or one that leads back to itself."""
    if file.is_symlink() and not file.exists():
        raise UserError(
            f"{file}: a link to {os.readlink(file)}, which is not there; restore that file, or remove the link"
        )


def saved_files(folder: Path) -> list[Path]:
    """The files of rows of a data set that `datasets` wrote with save_to_disk; none for any other folder."""
    return [folder / entry["filename"] for entry in _saved_state(folder).get("_data_files", ())]


def saved_split(folder: Path, split: str | None) -> list[Path]:
    """The files of rows of a split of what save_to_disk wrote, "train" where none is named; none for any other folder.

    Raises UserError for a split that is not there.
    """
    if (folder / "dataset_dict.json").is_file():
        found, splits = (
            saved_files(folder / (split or "train")),
            [entry.name for entry in sorted(folder.iterdir()) if saved_files(entry)],
        )
    else:
        found, splits = saved_files(folder), [_saved_state(folder).get("_split") or "train"]
    if (folder / "dataset_dict.json").is_file() and not found or found and split not in (None, *splits):
        raise UserError(
            f"hf:{folder}: no split {split or 'train'!r}, it has {', '.join(splits) or 'none'}; choose one: hf:{folder}@SPLIT"
        )
    return found


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


_copies: dict[tuple[int, int], _Copy] = {}  # by device and inode: a pipe is read once, its input may be asked for again


def digest_of_copy(file: str) -> str | None:
    """sha256 of a file that a pipe was copied into; None for any other."""
    return next((copy.digest for copy in _copies.values() if str(copy.path) == file), None)


def _from_descriptor(path: Path, column: str | None) -> Path:
    """The file behind an open descriptor, or a copy of what comes through a pipe: a worker has neither."""
    facts = path.stat()
    if stat.S_ISREG(facts.st_mode) and (real := Path(os.path.realpath(path))).is_file():
        return real
    if stat.S_ISBLK(facts.st_mode):
        raise UserError(f"{path}: a device; give files, folders or pipes")
    key = (facts.st_dev, facts.st_ino)
    if key not in _copies:
        number = {"/dev/stdin": "0", "/dev/stdout": "1", "/dev/stderr": "2"}.get(str(path), path.name)
        is_open = str(path).startswith(_DESCRIPTORS) and number.isdecimal()
        with open(os.dup(int(number)), "rb") if is_open else path.open("rb") as stream:
            if stream.isatty():
                raise UserError(f"{path}: a terminal; give a file, or pipe the text into the command")
            _copies[key] = _copied(stream, path, column)
    return _copies[key].path


def _copied(stream: BinaryIO, name: Path, column: str | None) -> _Copy:
    folder = Path(tempfile.mkdtemp(prefix="ds-distill-pipe-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log(f"{name}: not a file but a pipe, copied into {folder} until the end (TMPDIR says where)")
    file, digest = folder / "-".join(name.parts[1:]), hashlib.sha256()
    with file.open("wb") as copy:
        while block := stream.read(1 << 20):
            copy.write(block)
            digest.update(block)
    return _Copy(file.rename(file.with_name(file.name + _suffix(file, name, column))), digest.hexdigest())


def _suffix(file: Path, name: Path, column: str | None) -> str:
    """What a file's name should end with, by its first bytes; column: the one that is to be read, where one is named."""
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
    raise UserError(f"{name}#{column}: neither JSON lines nor a header with that column comes through the pipe")


# --- opening ---------------------------------------------------------------------------------------------------------


class _Counting(io.RawIOBase):
    """A byte stream that ends at `stop` and reports how far the file under it was read."""

    def __init__(self, path: Path, start: int, stop: int | None, tick: Callable[[int], None]):
        self.file, self.start, self.tick = path.open("rb"), start, tick
        self.stop = os.fstat(self.file.fileno()).st_size if stop is None else stop
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
    path: Path, packed: str, start: int = 0, stop: int | None = None, tick: Callable[[int], None] = lambda _: None
) -> BinaryIO:
    """Bytes [start, stop) of a file, unpacked.

    Args:
        path: The file.
        packed: ".gz", ".zst", or anything else for a plain one.
        start: Offset of the first byte.
        stop: Offset behind the last one; the file's end without it.
        tick: Called with the bytes of the file read so far.
    """
    raw = io.BufferedReader(_Counting(path, start, stop, tick), 1 << 18)
    if packed.lower() == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if packed.lower() == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 18)
    return raw


def head_of(path: Path, packed: str) -> bytes:
    """The first 64 KiB of a file, unpacked."""
    with open_unpacked(path, packed) as stream:
        return stream.read(_HEAD)


def unreadable(path: Path | str, error: Exception) -> UserError:
    """The UserError for a file that broke while it was read."""
    if "requires too much memory for decoding" in str(error):
        unpack = f"zstd -dc --long=31 {path}"
        return UserError(
            f"{path}: cannot be read: it was packed with a window beyond 128 MiB (zstd --long); unpack it ({unpack} > NEW), or let it "
            f"come through a pipe: --corpus <({unpack})"
        )
    return UserError(f"{path}: cannot be read ({error}); replace the file or leave it out")
