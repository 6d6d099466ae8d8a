"""Tables in Markdown."""

import math


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Return a Markdown table of `rows`; `columns` maps key → heading.

    Missing cells show "–".
    """
    cells = [list(columns.values())] + [[_cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


NOT_RUN = "not run"  # shown in a cell that is still to be measured


def _cell(value) -> str:
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
