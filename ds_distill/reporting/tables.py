"""Tables in Markdown, and in plain text for terminals."""

import math
import re
from collections.abc import Iterable, Sequence

FIGURE = r"–|[\d.,]+%?( ± [\d.,]+)?( ?[%M])?"  # such as 22.7 M and 51.2 ± 0.8 %


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Return a Markdown table of `rows`; `columns` maps key → heading.

    Missing cells show "–".
    """
    cells = [list(columns.values())] + [[cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of texts as lines with aligned columns: to the right where all below the first row are figures."""
    columns = []
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        right = all(re.fullmatch(FIGURE, text) for text in column[1:])
        columns.append([text.rjust(width) if right else text.ljust(width) for text in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


NOT_RUN = "not run"  # shown in a cell that is still to be measured


def cell(value) -> str:
    """Return the text of a cell that shows this value."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
