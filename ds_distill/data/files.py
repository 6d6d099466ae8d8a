"""The files that an input names: the file itself, those of a folder or a pattern, or a copy of the data from a pipe."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ds_distill.data.pipes import DESCRIPTORS, file_of_descriptor
from ds_distill.data.remote import RemoteFile, is_url, list_remote
from ds_distill.utils.console import TRACE, log_once_per_process
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
        return [path if path.is_file() and not given.startswith(DESCRIPTORS) else file_of_descriptor(path, column)]
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
    if given.startswith(DESCRIPTORS):
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
