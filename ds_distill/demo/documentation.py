"""The demo's text: English prose that every Python machine already holds, in two parts.

The teacher that comes with the demo was trained on text of this kind on another machine, so which
part a paragraph belongs to is decided by the paragraph alone: a paragraph that is held out on one
machine is held out on all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import multiprocessing
import random
import re
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ds_distill.utils.errors import UserError

HELDOUT_SHARE = 0.04  # of the paragraphs
MIN_DOCSTRING = 200  # in characters of prose; shorter docstrings are signatures in words
MIN_KEY_WORDS = 6


# This matches every triple-quoted string in order of appearance, so that opening and closing quotes
# pair up. `start` is set where only white space precedes it on its line, which is where a docstring
# stands. This is ten times faster than ast, and other strings that it takes for docstrings (a
# template, a test's data) meet the prose filter below.
_STRING = re.compile(
    r'(?:^(?P<start>[ \t]*))?[rRuU]?(?P<quote>"""|\'\'\')(?P<text>.*?)(?P=quote)', re.DOTALL | re.MULTILINE
)
_WORD = re.compile(r"[A-Za-z][a-z]*(?:['-][a-z]+)*")
_TERM = re.compile(r"[\w.]*\w")
_COMMON = frozenset(
    "the a an of to is in and for that be this it are as on by with or from if not which will can when".split()
)
_NOT_PROSE = re.compile(r">>>|::$|[{}|=<>\\_]{2}|https?://|^\s*[-=~#*^+]{4,}\s*$", re.MULTILINE)


@dataclass
class Documentation:
    """English prose from docstrings: documents to train on, and documents that no model of the demo trains on.

    Attributes:
        train: Documents, each the paragraphs of one docstring that are not held out, one per line.
        heldout: Documents of the held-out paragraphs.
    """

    train: list[str] = field(default_factory=list)
    heldout: list[str] = field(default_factory=list)


def read_documentation(
    max_bytes: int, seed: int = 0, *, roots: list[Path] | None = None, progress: Callable[[int], None] | None = None
) -> Documentation:
    """Return the prose of the docstrings below some folders.

    Source files are read, never imported. Files are visited one package after the other in turn,
    shuffled by `seed` within a package, so that a small corpus is as mixed as a large one. The
    result is the same on machines with the same packages. No two paragraphs have the same words,
    names and numbers aside, because documentation repeats its sentences with other names in them.

    Args:
        max_bytes: The most bytes of UTF-8 in all. There are fewer where the folders hold less.
        seed: Seed of the order of files.
        roots: The folders, by default those of the standard library and of the installed packages.
        progress: Called with the bytes gathered so far.
    """
    if max_bytes < 1:
        raise UserError(f"max_bytes = {max_bytes}: must be at least 1")
    documentation = Documentation()
    seen: set[bytes] = set()
    total = 0
    files: Iterable[list[list[str]]]
    # With fork, the workers only read files and match patterns. A spawned worker would run the
    # launching script again.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with contextlib.ExitStack() as stack:
        paths = _source_files(roots, seed)
        try:
            pool = stack.enter_context(multiprocessing.get_context(method).Pool(2))
            files = pool.imap(_read_prose, paths, chunksize=32)
        except OSError:  # There is no shared memory: /dev/shm is read-only or missing.
            files = map(_read_prose, paths)
        for docstrings in files:
            for paragraphs in docstrings:
                parts: dict[bool, list[str]] = {False: [], True: []}
                for paragraph in paragraphs:
                    key = _key(paragraph)
                    if key is not None and key not in seen:
                        seen.add(key)
                        parts[_is_heldout(key)].append(paragraph)
                for documents, part in ((documentation.train, parts[False]), (documentation.heldout, parts[True])):
                    if not part:
                        continue
                    document = "\n".join(part)
                    total += len(document.encode())
                    if total > max_bytes:
                        return documentation
                    documents.append(document)
            if progress is not None:
                progress(total)
    return documentation


def _key(paragraph: str) -> bytes | None:
    """Return a hash of the paragraph's words without names and numbers, or None where there are hardly any."""
    words = [term for term in _TERM.findall(paragraph) if term.isalpha() and term.islower()]
    if len(words) < MIN_KEY_WORDS:
        return None
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()


def _is_heldout(key: bytes) -> bool:
    return int.from_bytes(key, "little") < HELDOUT_SHARE * 2**64


def _source_files(roots: list[Path] | None, seed: int) -> list[str]:
    """Return every .py file of the folders, round robin over packages."""
    if roots is None:
        paths = sysconfig.get_paths()
        roots = list(dict.fromkeys(Path(paths[name]) for name in ("stdlib", "purelib", "platlib")))
    packages: dict[str, list[str]] = {}
    for root in roots:
        for entry in sorted(root.iterdir()):
            if entry.name in ("site-packages", "dist-packages", "__pycache__") or entry in roots:
                continue
            if entry.is_dir():
                packages[str(entry)] = sorted(str(p) for p in entry.rglob("*.py"))
            elif entry.suffix == ".py":
                packages.setdefault(str(root), []).append(str(entry))
    for package, files in packages.items():
        # The seed has the package's name, not its place, so the order is the same in another
        # environment.
        random.Random(f"{seed}:{Path(package).name}").shuffle(files)
    longest = max((len(files) for files in packages.values()), default=0)
    return [files[turn] for turn in range(longest) for files in packages.values() if turn < len(files)]


def _read_prose(path: str) -> list[list[str]]:
    """Return the paragraphs of every prose-like docstring of a file, one list per docstring, each on one line."""
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # A package's test data may be anything.
        return []
    docstrings = []
    for match in _STRING.finditer(source):
        text = match["text"]
        if match["start"] is None or len(text) < MIN_DOCSTRING:
            continue
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", inspect.cleandoc(text))]
        prose = [" ".join(p.split()) for p in paragraphs if _is_prose(p)]
        if sum(map(len, prose)) >= MIN_DOCSTRING:
            docstrings.append(prose)
    return docstrings


def _is_prose(paragraph: str) -> bool:
    """Return whether a paragraph reads like English: common words, few symbols, no code."""
    if len(paragraph) < 40 or not paragraph.isascii() or _NOT_PROSE.search(paragraph):
        return False
    words = _WORD.findall(paragraph)
    if len(words) < 8 or sum(map(len, words)) < 0.7 * len(paragraph):
        return False
    return sum(word.lower() in _COMMON for word in words) >= 0.15 * len(words)
