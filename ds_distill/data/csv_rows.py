"""The rows of a csv or tsv file, read strictly.

Text that is no row, or may be several rows, is refused or reported with its place.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from io import TextIOBase
from itertools import chain

from ds_distill.data.read_warnings import Findings
from ds_distill.data.sources import LONGEST_ROW
from ds_distill.utils.errors import UserError

# A field with so many lines, each with as many commas as a row, suggests an unclosed quote.
_MANY_LINES = 200
_SOME_ROWS, _MANY_ROWS = 10, 20  # lines exactly like rows that lead to a remark, or to an error
QUOTES = "write a literal quote as two quotes inside a quoted field, or use jsonl instead"


class CsvRows:
    """The rows of a csv file, each a list of fields.

    Text that is no csv raises a UserError with the row and the line where it begins.
    """

    def __init__(self, stream: TextIOBase, delimiter: str, path: str):
        csv.field_size_limit(2 * LONGEST_ROW)  # Longer rows are refused before.
        self._lines, self._delimiter, self._path = stream, delimiter, path
        self._row: list[str] = []  # the lines of the current row
        self._number, self.line, self._lines_read, self._characters = -1, 1, 0, 0
        self._reader = csv.reader(self._remembered(), delimiter=delimiter, strict=True)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        while True:
            self._row, self.line, self._characters = [], self._lines_read + 1, 0
            if row := self._parse():
                self._number += 1
                return row

    @property
    def where(self) -> str:
        """The file, with the current row and the line where it begins."""
        return f"{self._path}, row {self._number} (line {self.line})"

    def check(self, row: list[str], header: list[str], place: int, findings: Findings) -> None:
        """Check the current row, whose fields may not be the header's, and remark on doubtful ones.

        Args:
            row: The fields of the current row.
            header: The fields of the first row.
            place: The index of the field that is read.
            findings: Takes the remarks.

        Raises:
            UserError: If the field at `place` may be another one.
        """
        names = f"but the header has {len(header)} ({format_columns(header)})"
        if len(row) > len(header) and any(field.strip() for field in row[len(header) :]):
            hint = (
                "; write a quote inside a quoted field as two quotes, not with a backslash"
                if '\\"' in "".join(self._row)
                else ""
            )
            what = "tab" if self._delimiter == "\t" else "comma"
            raise UserError(
                f"{self.where}: {len(row)} fields, {names}; a field that contains a {what} must be quoted{hint}"
            )
        if len(row) < len(header):
            if len(row) <= place:
                raise UserError(
                    f"{self.where}: {len(row)} fields, {names}; a field that contains a line break must be quoted"
                )
            findings.remark(
                "short rows", f"{self.where}: {len(row)} fields, {names}; check for a line break outside of quotes"
            )
        self.check_lines(row, len(header), findings)

    def check_lines(self, row: list[str], columns: int, findings: Findings) -> None:
        """Check for rows that a quote has swallowed, and remark on them where they are likely.

        In such a case a later quote closed the field, and the rows between are lines of one field.

        Raises:
            UserError: If swallowed rows are certain.
        """
        if len(self._row) < 2:
            return
        for place, field in enumerate(row):
            first, *lines = field.splitlines() or [""]
            if not lines:
                continue
            if columns > 1:
                swallowed = self._are_rows(first, lines, place, columns)
            else:  # Every line is a row of one column.
                swallowed = all(map(str.strip, lines)) and '""' not in "".join(self._row)
            is_certain = 1 if self._delimiter == "\t" else _MANY_ROWS  # Commas occur in prose, too.
            if swallowed and columns > 1 and len(lines) > is_certain:
                raise UserError(
                    f"{self.where}: a field that begins with a quote continues over {len(lines):,} more rows; {QUOTES}"
                )
            alike = sum(line.count(self._delimiter) >= columns - 1 for line in lines)
            is_long = len(lines) >= _MANY_LINES and alike >= 0.9 * len(lines)
            if is_long or (swallowed and len(lines) >= (1 if self._delimiter == "\t" else _SOME_ROWS)):
                findings.remark(
                    "quotes",
                    f"{self.where}: one field contains {len(lines):,} line breaks; check that its quote is closed in "
                    "the right place",
                )

    def _are_rows(self, first: str, lines: list[str], place: int, columns: int) -> bool:
        """Return whether a field at `place` reads as the end of one row, whole rows, and the start of another."""
        numbers = [line.count(self._delimiter) for line in (first, *lines)]
        expected = [columns - 1 - place, *[columns - 1] * (len(lines) - 1), place]
        return numbers == expected or numbers[:-1] == expected[:-1] and numbers[-1] == columns - 1

    def _remembered(self) -> Iterator[str]:
        while line := self._lines.readline(LONGEST_ROW):
            self._row.append(line)
            self._lines_read += 1
            self._characters += len(line)
            if self._characters >= LONGEST_ROW:
                self._number += 1
                raise UserError(
                    f"{self.where}: a row of more than {LONGEST_ROW >> 20} million characters, as an unclosed quote "
                    f"makes one; {QUOTES}"
                )
            yield line

    def _parse(self) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error as error:
            # Blanks between a closing quote and the next field are not strict csv, but harmless.
            closed = re.sub(rf'"[ ]+(?={self._delimiter}|\r?\n?$)', '"', self._row[-1]) if self._row else ""
            if self._row and closed != self._row[-1]:
                self._row[-1] = closed
                self._reader = csv.reader(
                    chain(self._row[:], self._remembered()), delimiter=self._delimiter, strict=True
                )
                return self._parse()
            self._number += 1
            if "expected after" in str(error):
                raise UserError(f"{self.where}: there is text after a closing quote; {QUOTES}") from error
            if "unexpected end" in str(error):
                raise UserError(f"{self.where}: a quote that is opened there is never closed; {QUOTES}") from error
            raise


def format_columns(names: list) -> str:
    """Return the names of columns as an error shows them."""
    text = ", ".join(map(str, names))
    return text if len(text) <= 300 else f"{text[:300]}…"
