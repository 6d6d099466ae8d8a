"""Parts of a corpus, which many hosts prepare at once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ds_distill.utils.errors import UserError

_NAMED = 20  # parts that an error names


@dataclass(frozen=True)
class Part:
    """One of `parts` shares of a corpus's pieces, which may be prepared on different hosts at once; `number` from 1."""

    number: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part that "I/N" names; raise UserError for anything else."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--part {text}: must be I/N, such as 1/8 to 8/8 for eight parts")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    def holds(self, piece: int) -> bool:
        """Return whether a piece, by its number from 0, belongs to this part."""
        return piece % self.parts == self.number - 1


def describe_parts(pieces: list[int], parts: int) -> str:
    """Return the options that name the parts, of `parts` ones, which hold pieces of these numbers."""
    numbers = sorted({piece % parts + 1 for piece in pieces})
    names = ", ".join(f"--part {number}/{parts}" for number in numbers[:_NAMED])
    return names + (f" and {len(numbers) - _NAMED:,} more" if len(numbers) > _NAMED else "")


def describe_part(done: dict[str, int]) -> str:
    """Return in words what `Preparation.run_part` has done, and what is next."""
    if unhashed := done["pieces_unhashed"]:
        return (
            f"its documents are hashed, to find duplicates; repeat the command when all parts have got so far "
            f"({unhashed:,} pieces are left)"
        )
    left = done["pieces_left"]
    state = f"{left:,} pieces of other parts are left" if left else "all parts are prepared; end with --assemble"
    return f"{done['pieces']:,} pieces are prepared; {state}"
