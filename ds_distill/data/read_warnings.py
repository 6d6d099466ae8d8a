"""Findings that come up while a piece of a corpus is read, besides its documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

LONG_ROWS = "long rows"  # the kind of the remarks on rows that were skipped


@dataclass
class Findings:
    """The findings on a piece of a corpus.

    Args:
        characters: How many characters were read, and what became of them, by name.
        remarks: For each kind, how many there were and the first, which is a sentence for the user.
        dropped: How many documents were dropped, since they occurred before.
    """

    characters: Counter[str] = field(default_factory=Counter)
    remarks: dict[str, tuple[int, str]] = field(default_factory=dict)
    dropped: int = 0

    def count(self, read: int, between_documents: int) -> None:
        """Count characters that were read, and those of them that are in no document."""
        self.characters["read"] += read
        self.characters["between_documents"] += between_documents

    def skip(self, rows: int, characters: int, sentence: str) -> None:
        """Count rows that are too long to be read, with their characters, and keep a sentence on the first."""
        self.characters.update({"read": characters, "long_rows": characters})
        self.remark(LONG_ROWS, sentence, rows)

    def remark(self, kind: str, sentence: str, times: int = 1) -> None:
        """Keep a sentence, or count it where there already is one of its kind."""
        number, first = self.remarks.get(kind, (0, sentence))
        self.remarks[kind] = (number + times, first)

    def sentences(self) -> list[str]:
        """Return the remarks, each with how many more there are like it."""
        return [
            sentence + (f" ({times - 1:,} more like it)" if times > 1 else "")
            for times, sentence in self.remarks.values()
        ]
