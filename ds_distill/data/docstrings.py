"""English prose that every Python machine already holds: the demo's corpus."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import random
import re
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

from ds_distill.utils.errors import UserError

MIN_DOCSTRING = 200  # in characters of prose; shorter docstrings are signatures in words


# This matches every triple-quoted string in order of appearance, so that opening and closing quotes
# pair up. `start` is set where only white space precedes it on its line, which is where a docstring
# stands. This is ten times faster than ast, and other strings that it takes for docstrings (a
# template, a test's data) meet the prose filter below.
_STRING = re.compile(
    r'(?:^(?P<start>[ \t]*))?[rRuU]?(?P<quote>"""|\'\'\')(?P<text>.*?)(?P=quote)', re.DOTALL | re.MULTILINE
)
_WORD = re.compile(r"[A-Za-z][a-z]*(?:['-][a-z]+)*")
_COMMON = frozenset(
    "the a an of to is in and for that be this it are as on by with or from if not which will can when".split()
)
_NOT_PROSE = re.compile(r">>>|::$|[{}|=<>\\_]{2}|https?://|^\s*[-=~#*^+]{4,}\s*$", re.MULTILINE)


def embedded_documents(max_bytes: int, seed: int = 0, *, progress: Callable[[int], None] | None = None) -> list[str]:
    """Return English prose found on every machine, in docstrings of the installed Python.

    The docstrings are those of the standard library and of the installed packages. Source files are
    read, never imported. Files are visited one package after the other in turn, shuffled by `seed`
    within a package, so that a small corpus is as mixed as a large one. No paragraph occurs twice.
    The list is the same on machines with the same packages.

    Args:
        max_bytes: The most bytes of UTF-8 in all. There are fewer where the machine holds less.
        seed: Seed of the order of files.
        progress: Called with the bytes gathered so far.

    Returns:
        Documents of at least 200 characters.
    """
    if max_bytes < 1:
        raise UserError(f"max_bytes = {max_bytes}: must be at least 1")
    documents: list[str] = []
    seen: set[str] = set()
    total = 0
    files: Iterable[list[list[str]]]
    # With fork, the workers only read files and match patterns. A spawned worker would run the
    # launching script again.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with contextlib.ExitStack() as stack:
        try:
            pool = stack.enter_context(multiprocessing.get_context(method).Pool(2))
            files = pool.imap(_read_prose, _source_files(seed), chunksize=32)
        except OSError:  # There is no shared memory: /dev/shm is read-only or missing.
            files = map(_read_prose, _source_files(seed))
        for prose in files:
            for paragraphs in prose:
                # Boilerplate (parameters, licenses) is repeated by paragraph, so it is dropped by
                # paragraph, not by document.
                new_paragraphs = [p for p in dict.fromkeys(paragraphs) if p not in seen]
                document = "\n".join(new_paragraphs)
                if len(document) < MIN_DOCSTRING:
                    continue
                size = len(document.encode())
                if total + size > max_bytes:
                    return documents
                seen.update(new_paragraphs)
                documents.append(document)
                total += size
            if progress is not None:
                progress(total)
    return documents


def _source_files(seed: int) -> list[str]:
    """Return every .py file of the standard library and site-packages, round robin over packages."""
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
    """Return the paragraphs of every prose-like docstring of a file, one list per docstring."""
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
        prose = ["\n".join(line.strip() for line in p.splitlines()) for p in paragraphs if _is_prose(p)]
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
