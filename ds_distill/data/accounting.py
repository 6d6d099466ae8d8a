"""Accounts of a corpus's characters: what became of them, and what to tell the user where many were lost."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from ds_distill.data.charset import conversion, likely_encoding, lines_not_utf8
from ds_distill.data.read_warnings import Findings
from ds_distill.data.remote import corpus_file
from ds_distill.utils.errors import UserError

TRACE = 0.01  # A smaller share of a corpus is not worth a line.
# Every character that is read ends as one of these causes. Each maps to the sentence about it,
# where {example} is the first that was met.
CAUSES = {
    "between_documents": None,  # white space and byte-order marks: nothing is lost
    "long_rows": None,  # each file with such rows has a remark of its own
    "duplicates": "are in documents that occurred before, and were dropped (data.drop_duplicates)",
    "not_utf8": "replace bytes that are not valid UTF-8",
    "unknown": "are in words that are not in the tokenizer's vocabulary, such as {example}; check that the "
    "tokenizer was made for this language",
    "too_long": "are in words longer than the tokenizer accepts, such as {example}…; text without spaces needs a "
    "tokenizer made for it (SentencePiece, such as XLM-R's), or spaces between its words",
    "removed": "are removed by the tokenizer's normalizer, such as {example}: control characters, or accents, "
    "which an uncased tokenizer drops",
    "special_tokens": "spell out special tokens, such as {example}, and are ignored; remove them from the text",
    "short_sequences": "are in lines of fewer than 12 tokens, which data.mode = lines drops; data.mode = packed keeps "
    "them",
    "unknown_sequences": "are in lines in which at least half of the tokens are unknown, which data.mode = lines "
    "drops; use a tokenizer made for this language",
}


@dataclass
class FileCounts:
    """The counts of one file or hub data set: characters by fate, and findings in its documents."""

    is_rows: bool
    characters: Counter[str] = field(default_factory=Counter)
    statistics: Counter[str] = field(default_factory=Counter)

    @property
    def documents(self) -> int:
        """The number of documents in the file, empty ones included."""
        return self.statistics["documents_train"] + self.statistics["documents_heldout"] + self.statistics["empty"]


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
        counts.statistics.update(report["found"])
        self.examples = report["examples"] | self.examples
        for what, (times, sentence) in report["remarks"].items():
            self.findings.remark(what, sentence, times)

    def statistics(self) -> Counter[str]:
        """Return the findings in all documents, by name."""
        return _sum(counts.statistics for counts in self.files.values())

    def characters(self) -> dict[str, int]:
        """Return how many characters were read, and what became of them.

        The value of "read" is the sum of all others.
        """
        total = _sum(counts.characters for counts in self.files.values())
        return {name: total[name] for name in ("read", "tokenized", *CAUSES)}

    def sentences(self) -> list[str]:
        """Return one sentence for each cause of notable losses, and one for each kind of remark.

        A cause is notable if it took more than a trace of the text, or more than half of a file. A
        remark is about something that the user hardly meant.
        """
        lines = [
            self._encoding_sentence(),
            *(self._cause_sentence(cause) for cause, sentence in CAUSES.items() if sentence and cause != "not_utf8"),
            self._rows_sentence(),
        ]
        return [*filter(None, lines), *self.findings.sentences()]

    def _cause_sentence(self, cause: str) -> str | None:
        parts = {path: (counts.characters[cause], counts.characters["read"]) for path, counts in self.files.items()}
        if not (where := _describe_share(parts)):
            return None
        sentence = cast(str, CAUSES[cause])  # Those without one are not asked for.
        example = self.examples.get(cause, "")
        return (
            f"{where.format('the characters')} "
            f"{sentence.format(example=example if example.startswith('U+') else repr(example))}"
        )

    def _encoding_sentence(self) -> str | None:
        parts = {path: (counts.statistics["bad_utf8"], counts.documents) for path, counts in self.files.items()}
        if not (where := _describe_share(parts)):
            return self._cause_sentence("not_utf8")
        worst = max(parts, key=lambda path: parts[path][0])
        characters = self.files[worst].characters
        lost = characters["not_utf8"] / max(1, characters["read"] - characters["between_documents"])
        encoding, is_utf8 = _detect_encoding(worst)
        if is_utf8:
            return (
                f"{where.format('the documents')} contain unpaired surrogates (such as \\ud83d), which are "
                f"{_percent(lost)} of that file's characters; write both halves of each pair"
            )
        remedy = (
            f"the encoding looks like {encoding}; convert it: {conversion(worst, encoding)}"
            if encoding
            else "convert the file to UTF-8 (with iconv), or remove it from the corpus"
        )
        return (
            f"{where.format('the documents')} contain bytes that are not valid UTF-8, which are {_percent(lost)} of "
            f"that file's characters; {remedy}"
        )

    def _rows_sentence(self) -> str | None:
        parts = {
            path: (counts.statistics["empty"], counts.documents)
            for path, counts in self.files.items()
            if counts.is_rows
        }
        where = _describe_share(parts)
        return f"{where.format('the rows')} contain no text" if where else None


def _sum(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)  # `+` would leave out counts of 0.
    return total


def _describe_share(parts: dict[str, tuple[int, int]]) -> str | None:
    """Return the lost share and the file that has most of it; None for a trace.

    The text has {} in the place of the name of what is counted. `parts` maps each file to how many
    were lost and how many there were.
    """
    lost, total = (sum(pair[i] for pair in parts.values()) for i in (0, 1))
    if not any(2 * part > whole for part, whole in parts.values()) and lost <= TRACE * total:
        return None
    worst = max(parts, key=lambda path: parts[path][0])
    most = f" of {worst}" if len(parts) == 1 else f" (most in {worst})"
    return f"{_percent(lost / total)} of {{}}{most.replace('{', '{{').replace('}', '}}')}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _detect_encoding(path: str) -> tuple[str | None, bool]:
    """Return (the encoding that a file seems to be in, whether its bytes are UTF-8 all the same).

    The bytes of JSON's escapes, for example, are UTF-8.
    """
    try:
        file = corpus_file(path)
        lines = lines_not_utf8(file, file.suffix)
    except (OSError, EOFError, zlib.error, UserError):  # The path is a hub data set, or a file that is no longer there.
        return None, False
    return likely_encoding(lines), not lines
