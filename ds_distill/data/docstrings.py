"""English prose that every Python machine already holds: the demo's corpus."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import random
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path

from ds_distill.utils.errors import UserError

MIN_DOCSTRING = 200  # characters of prose; shorter ones are signatures in words


# Every triple-quoted string, in order of appearance, so that opening and closing quotes pair up; `start` is set where
# only white space stands before it on its line, which is where a docstring stands.  Ten times faster than ast, and
# what it mistakes for a docstring (a template, a test's data) meets the prose filter below.
_STRING = re.compile(
    r'(?:^(?P<start>[ \t]*))?[rRuU]?(?P<quote>"""|\'\'\')(?P<text>.*?)(?P=quote)', re.DOTALL | re.MULTILINE
)
_WORD = re.compile(r"[A-Za-z][a-z]*(?:['-][a-z]+)*")
_COMMON = frozenset(
    "the a an of to is in and for that be this it are as on by with or from if not which will can when".split()
)
_NOT_PROSE = re.compile(r">>>|::$|[{}|=<>\\_]{2}|https?://|^\s*[-=~#*^+]{4,}\s*$", re.MULTILINE)


def embedded_documents(max_bytes: int, seed: int = 0, *, progress: Callable[[int], None] | None = None) -> list[str]:
    """English prose found on every machine: docstrings of the standard library and of the installed packages.

    Source files are read, never imported.  Files are visited one package after the other in turn, shuffled by `seed`
    within a package, so that a small corpus is as mixed as a large one; no paragraph comes twice.  Returns documents of
    at least 200 characters, at most `max_bytes` bytes of UTF-8 in all (fewer where the machine holds less), the same list on
    machines with the same packages.  `progress` is called with the bytes gathered so far.
    """
    if max_bytes < 1:
        raise UserError(f"embedded corpus of {max_bytes} bytes: ask for at least 1")
    found: list[str] = []
    seen: set[str] = set()
    total = 0
    # fork: the workers only read files and match patterns, and a spawned one would run the launching script again.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with contextlib.ExitStack() as stack:
        try:
            pool = stack.enter_context(multiprocessing.get_context(method).Pool(2))
            files = pool.imap(_prose_of_file, _source_files(seed), chunksize=32)
        except OSError:  # no shared memory: /dev/shm is read-only, or missing
            files = map(_prose_of_file, _source_files(seed))
        for prose in files:
            for paragraphs in prose:
                # Boilerplate is repeated paragraph by paragraph (parameters, licences): drop it there, not by document.
                fresh = [p for p in dict.fromkeys(paragraphs) if p not in seen]
                document = "\n".join(fresh)
                if len(document) < MIN_DOCSTRING:
                    continue
                size = len(document.encode())
                if total + size > max_bytes:
                    return found
                seen.update(fresh)
                found.append(document)
                total += size
            if progress is not None:
                progress(total)
    return found


def _source_files(seed: int) -> list[str]:
    """Every .py file of the standard library and site-packages, round robin over packages."""
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
        # Keyed by the package's name, not its place: the same order in another environment.
        random.Random(f"{seed}:{Path(package).name}").shuffle(files)
    longest = max((len(files) for files in packages.values()), default=0)
    return [files[turn] for turn in range(longest) for files in packages.values() if turn < len(files)]


def _prose_of_file(path: str) -> list[list[str]]:
    """The paragraphs of every prose-like docstring of a file: one list of paragraphs a docstring."""
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # a package's test data may be anything
        return []
    found = []
    for match in _STRING.finditer(source):
        text = match["text"]
        if match["start"] is None or len(text) < MIN_DOCSTRING:
            continue
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", inspect.cleandoc(text))]
        prose = ["\n".join(line.strip() for line in p.splitlines()) for p in paragraphs if _is_prose(p)]
        if sum(map(len, prose)) >= MIN_DOCSTRING:
            found.append(prose)
    return found


def _is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads like English: common words, few symbols, no code."""
    if len(paragraph) < 40 or not paragraph.isascii() or _NOT_PROSE.search(paragraph):
        return False
    words = _WORD.findall(paragraph)
    if len(words) < 8 or sum(map(len, words)) < 0.7 * len(paragraph):
        return False
    return sum(word.lower() in _COMMON for word in words) >= 0.15 * len(words)
