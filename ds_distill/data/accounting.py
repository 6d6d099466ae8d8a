"""What became of a corpus's characters, and what to tell the user where much of them was lost."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ds_distill.data.encodings import conversion, likely_encoding, lines_not_utf8
from ds_distill.data.findings import Findings

TRACE = 0.01  # less than this share of a corpus is not worth a line
# Every character that is read ends as one of these. Cause → what is said of it; {example} is the first that was met.
CAUSES = {
    "between_documents": None,  # white space and byte-order marks: nothing is lost
    "not_utf8": "stand for bytes that are not UTF-8",
    "unknown": "are in words that the tokenizer does not know, such as {example}; check that it is made for this language",
    "too_long": "are in words longer than the tokenizer takes, such as {example}…; text without spaces needs a tokenizer made for it (SentencePiece, "
    "as XLM-R's), or spaces between its words",
    "removed": "are taken out by the tokenizer's normalizer, such as {example}: control characters, or accents, which an uncased tokenizer drops",
    "special_tokens": "spell special tokens, such as {example}, and are left out; take them out of the text",
    "short_sequences": "are in lines of fewer than 12 tokens, which data.mode = grouped leaves out; packed keeps them",
    "unknown_sequences": "are in lines of which the tokenizer does not know half, which data.mode = grouped leaves out; use a tokenizer made for this "
    "language",
}


@dataclass
class FileCounts:
    """Of one file, or hub data set: characters by fate, and what was found in its documents."""

    is_rows: bool
    characters: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)

    @property
    def documents(self) -> int:
        return self.found["documents_train"] + self.found["documents_heldout"] + self.found["empty"]


class Accounts:
    """The counts of a corpus, file by file."""

    def __init__(self) -> None:
        self.files: dict[str, FileCounts] = {}
        self.examples: dict[str, str] = {}
        self.findings = Findings()

    def add(self, path: str, kind: str, report: dict) -> None:
        """Add the report of a piece."""
        counts = self.files.setdefault(path, FileCounts(kind != "text"))
        counts.characters.update(report["characters"])
        counts.found.update(report["found"])
        self.examples = report["examples"] | self.examples
        for what, (times, sentence) in report["remarks"].items():
            self.findings.remark(what, sentence, times)

    def found(self) -> Counter[str]:
        """What was found in all documents, by name."""
        return _sum(counts.found for counts in self.files.values())

    def characters(self) -> dict[str, int]:
        """How many characters were read, and what became of them: "read" is the sum of all others."""
        total = _sum(counts.characters for counts in self.files.values())
        return {name: total[name] for name in ("read", "tokenized", *CAUSES)}

    def sentences(self) -> list[str]:
        """One for each cause that took more than a trace of the text, or more than half of a file, and one for each kind of what is hardly meant."""
        found = [
            self._on_encoding(),
            *(self._on_cause(cause) for cause in CAUSES if cause not in ("between_documents", "not_utf8")),
            self._on_rows(),
        ]
        more = ((times, sentence) for times, sentence in self.findings.remarks.values())
        return [
            *filter(None, found),
            *(sentence + (f" ({times - 1:,} more like it)" if times > 1 else "") for times, sentence in more),
        ]

    def _on_cause(self, cause: str) -> str | None:
        parts = {path: (counts.characters[cause], counts.characters["read"]) for path, counts in self.files.items()}
        if not (where := _where(parts)):
            return None
        example = self.examples.get(cause, "")
        return f"{where.format('the characters')} {CAUSES[cause].format(example=example if example.startswith('U+') else repr(example))}"

    def _on_encoding(self) -> str | None:
        parts = {path: (counts.found["bad_utf8"], counts.documents) for path, counts in self.files.items()}
        if not (where := _where(parts)):
            return self._on_cause("not_utf8")
        worst = max(parts, key=lambda path: parts[path][0])
        characters = self.files[worst].characters
        lost = characters["not_utf8"] / max(1, characters["read"] - characters["between_documents"])
        encoding, is_utf8 = _encoding_of(worst)
        if is_utf8:
            return f"{where.format('the documents')} hold halves of character pairs (such as \\ud83d), {_percent(lost)} of its characters; have them written whole"
        remedy = (
            f"it looks like {encoding}: {conversion(worst, encoding)}"
            if encoding
            else "convert it to UTF-8 (iconv), or leave it out"
        )
        return f"{where.format('the documents')} hold bytes that are not UTF-8, {_percent(lost)} of its characters; {remedy}"

    def _on_rows(self) -> str | None:
        parts = {
            path: (counts.found["empty"], counts.documents) for path, counts in self.files.items() if counts.is_rows
        }
        where = _where(parts)
        return f"{where.format('the rows')} hold no text" if where else None


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)  # `+` would leave out what is 0
    return total


def _where(parts: dict[str, tuple[int, int]]) -> str | None:
    """How much of what is counted, and in which file most, with {} for the name of what is counted; None for a trace. parts: of each file how many were
    lost, and of how many."""
    lost, total = (sum(pair[i] for pair in parts.values()) for i in (0, 1))
    if not any(2 * part > whole for part, whole in parts.values()) and lost <= TRACE * total:
        return None
    worst = max(parts, key=lambda path: parts[path][0])
    most = f" of {worst}" if len(parts) == 1 else f" (most in {worst})"
    return f"{_percent(lost / total)} of {{}}{most.replace('{', '{{').replace('}', '}}')}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _encoding_of(path: str) -> tuple[str | None, bool]:
    """(the encoding that a file seems to be in, whether its bytes are UTF-8 all the same, as those of JSON's escapes are)."""
    try:
        lines = lines_not_utf8(Path(path), Path(path).suffix)
    except (OSError, EOFError, zlib.error):  # a hub data set, or a file that has gone since
        return None, False
    return likely_encoding(lines), not lines and Path(path).is_file()
