"""Panels: curves over tokens, each with a title, units and a legend, drawn as PNG files or as SVG inside a page.

Several curves differ in color, in line style and in marker, so that they can be told apart without colors.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

# Each color has a contrast of at least 4.5 : 1, the first on a white page and the second on a dark one. Blue, orange
# and the rest differ in lightness too, for readers who do not see red or green.
COLORS = (
    ("#0072b2", "#56b4e9"),
    ("#b84a00", "#ff9a4d"),
    ("#007d5b", "#2fc79b"),
    ("#8b3a8f", "#e29be4"),
    ("#7a6200", "#e3c84b"),
    ("#555555", "#c0c0c0"),
)
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
MARKERS = ("o", "^", "s", "D", "v", "P")
UNITS = ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"), (1.0, ""))
MOST_POINTS = 100
PLAIN_TEXT: dict[str, Any] = {"text.parse_math": False}  # a folder's name may have dollar signs
SVG_SETTINGS = PLAIN_TEXT | {
    "svg.fonttype": "none",
    "svg.hashsalt": "ds-distill",
    "font.sans-serif": ["DejaVu Sans"],
}
LOGARITHMIC_FROM = 20  # the ratio of largest to smallest value from which a linear axis hides the smaller ones
FEWEST_TO_HIDE = 5  # points of a curve, below which its beginning is shown
HIDDEN_FROM = 3  # the ratio of the whole range to the later one from which a curve's beginning is left out


@dataclass(frozen=True)
class Line:
    """A curve of a panel.

    Attributes:
        label: Its name in the legend.
        places: The tokens trained on, or the steps, at each point.
        values: The value at each point, or None where there is none.
        errors: The standard error of each value, or None where there is none; may be empty.
        look: The number of its color, line style and marker.
        measured: Whether each point is a measurement, which gets a marker.
    """

    label: str
    places: Sequence[float]
    values: Sequence[float | None]
    errors: Sequence[float | None] = ()
    look: int = 0
    measured: bool = True


@dataclass(frozen=True)
class Mark:
    """A vertical line of a panel: its place on the horizontal axis, its label, and the number of its color."""

    place: float
    label: str
    look: int = 0


@dataclass(frozen=True)
class Panel:
    """A plot of one quantity over tokens or steps.

    Attributes:
        title: What is shown.
        unit: The label of the vertical axis.
        lines: The curves.
        level: A value to compare them with, drawn as a dashed horizontal line; None for no line.
        level_label: The level's name in the legend.
        across: The label of the horizontal axis.
        falls: Whether the quantity is a distance above 0, whose axis may be logarithmic.
        marks: Vertical lines.
    """

    title: str
    unit: str
    lines: Sequence[Line]
    level: float | None = None
    level_label: str = "teacher's level"
    across: str = "training tokens"
    falls: bool = False
    marks: Sequence[Mark] = ()


def mean_points(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float | None]]:
    """Return (tokens, means of `key` over equally many steps) of a run's history, at most MOST_POINTS of each.

    The history of a long run has not all steps, but some of every block.
    """
    size = -(-rows[-1]["step"] // MOST_POINTS) if rows else 1
    blocks = [list(block) for _, block in groupby(rows, lambda row: (row["step"] - 1) // size)]
    values = [[row[key] for row in block if row.get(key) is not None] for block in blocks]
    return [block[-1]["tokens"] for block in blocks], [sum(part) / len(part) if part else None for part in values]


def write_png(panels: Sequence[Panel], path: Path, title: str = "") -> None:
    """Write the panels as one PNG, two side by side, with one legend below them."""
    plt = pyplot()
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    width = 4.9 * columns + (1.5 if columns == 1 else 0)
    names = {line.label for panel in panels for line in panel.lines}
    size = (width, 0.6 + 3.3 * rows + 0.1 * len(names))
    with plt.rc_context(PLAIN_TEXT):
        figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        shown = list(grid.flat)
        for axes, panel in zip(shown, panels, strict=False):
            _draw(axes, panel)
            axes.set_title(panel.title, fontsize=11)
        for axes in shown[len(panels) :]:
            axes.set_axis_off()
        _add_legend(figure, shown, per_row=2 * columns)
        figure.suptitle(title, fontsize=13)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def make_svg(panel: Panel, name: str) -> str:
    """Return a panel as an <svg> element to put into a page.

    Its colors are those of the page, by the variables --series-0 and so on, --grid and currentColor. It has a title and
    a description for screen readers, and the same panel always gives the same text.

    Args:
        panel: The panel.
        name: What its ids begin with; unique in the page.
    """
    plt = pyplot()
    with plt.rc_context(SVG_SETTINGS):
        figure, axes = plt.subplots(figsize=(4.8, 3.1 + 0.21 * (len(panel.lines) + 1) / 2), layout="constrained")
        _draw(axes, panel)
        _add_legend(figure, [axes], per_row=2)
        return embed_figure(figure, name, panel.title, _describe(panel))


def pyplot():
    """Return matplotlib.pyplot, set up to write files."""
    # The import is here, because otherwise every --help would wait for it.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _draw(axes, panel: Panel) -> None:
    largest = max((place for line in panel.lines for place in line.places), default=0)
    scale, word = next((pair for pair in UNITS if largest >= pair[0]), UNITS[-1])
    for line in panel.lines:
        _draw_line(axes, line, scale)
    if panel.level is not None:
        axes.axhline(panel.level, color="black", linewidth=1.3, linestyle=(0, (7, 4)), label=panel.level_label)
    for mark in panel.marks:
        look = {"color": COLORS[mark.look % len(COLORS)][0]}
        axes.axvline(mark.place / scale, linewidth=1, linestyle=(0, (1, 2)), zorder=1, **look)
        place: dict[str, Any] = {"xy": (mark.place / scale, 1), "xycoords": ("data", "axes fraction")}
        offset: dict[str, Any] = {"xytext": (2, -2), "textcoords": "offset points"}
        axes.annotate(mark.label, **place, **offset, rotation=90, va="top", fontsize=7, **look)
    numbers = [value for line in panel.lines for value in line.values if value is not None]
    if panel.falls and numbers and min(numbers) > 0 and max(numbers) > LOGARITHMIC_FROM * min(numbers):
        axes.set_yscale("log")
    elif limits := limits_after_start(panel):
        axes.set_ylim(*limits)
    low, high = axes.get_ylim()
    if low < 0 <= min(numbers, default=0.0):
        axes.set_ylim(bottom=-0.03 * high)  # no marks below 0 for what is never negative
    axes.set(xlabel=f"{panel.across} ({word})" if word else panel.across, ylabel=panel.unit)
    axes.grid(color="#b0b0b0", alpha=0.4, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def limits_after_start(panel: Panel) -> tuple[float, float] | None:
    """Return limits of the vertical axis that leave out where the curves begin, or None where that shows little more.

    A model with random weights begins so far from the others that their differences could not be seen.
    """
    later, everything = [], []
    for line in panel.lines:
        values = [(place, value) for place, value in zip(line.places, line.values, strict=True) if value is not None]
        first = max(1, len(values) // 20) if len(values) >= FEWEST_TO_HIDE else 0
        everything += [value for _, value in values]
        later += [value for _, value in values[first:]] or [value for _, value in values]
    if panel.level is not None:
        later.append(panel.level)
        everything.append(panel.level)
    if not later or max(everything) - min(everything) <= HIDDEN_FROM * (max(later) - min(later)):
        return None
    margin = 0.08 * (max(later) - min(later)) or 0.05 * abs(max(later)) or 1.0
    return min(later) - margin, max(later) + margin


def _draw_line(axes, line: Line, scale: float) -> None:
    nan = float("nan")
    values = [nan if value is None else value for value in line.values]
    errors = [nan if error is None else error for error in line.errors]
    style: dict[str, Any] = {
        "color": COLORS[line.look % len(COLORS)][0],
        "linestyle": DASHES[line.look % len(DASHES)],
        "linewidth": 1.5 if line.measured else 1.2,
        "zorder": 3 if line.measured else 2,
    }
    if line.measured or len(values) == 1:
        style |= {"marker": MARKERS[line.look % len(MARKERS)], "markersize": 4.5}
    if any(error is not None for error in line.errors):
        style |= {"yerr": errors, "capsize": 2.5, "elinewidth": 1}
    label = f" {line.label}" if line.label.startswith("_") else line.label  # which would not be in the legend
    axes.errorbar([place / scale for place in line.places], values, label=label, **style)


def _add_legend(figure, shown: Sequence, per_row: int) -> None:
    """Add one legend of all that the axes show, below them; nothing covers a curve there."""
    entries: dict[str, Any] = {}
    for axes in shown:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        longest = max(map(len, entries))
        columns = max(1, min(len(entries), per_row, per_row * 24 // max(longest, 1)))
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize=9,
            handlelength=3.2,
        )


def embed_figure(figure, name: str, title: str, description: str) -> str:
    """Return a figure of matplotlib as an <svg> element to put into a page, and close it.

    Args:
        figure: The figure, drawn with SVG_SETTINGS in the light COLORS, in black, and in white for the page's color.
        name: What the element's ids begin with; unique in the page.
        title: The title for screen readers.
        description: What the figure shows, in words.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    pyplot().close(figure)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r"(font: [^\";]*?)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", text)
    for number, (light, _) in enumerate(COLORS):
        text = text.replace(light, f"var(--series-{number})")
    text = text.replace("#b0b0b0", "var(--grid)").replace("#000000", "currentColor").replace("#ffffff", "var(--page)")
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None  # every SVG of matplotlib has one
    head = (
        f'<svg {box[0]} role="img" aria-labelledby="{name}-title {name}-description">\n'
        f'<title id="{name}-title">{html.escape(title)}</title>\n'
        f'<desc id="{name}-description">{html.escape(description)}</desc>'
    )
    return head + text[text.index(">") + 1 :].rstrip()


def _describe(panel: Panel) -> str:
    """Return what a panel shows in words: the last value of each curve, and the level."""
    parts = [f"{panel.unit} over {panel.across}"]
    for line in panel.lines:
        values = [value for value in line.values if value is not None]
        if values:
            parts.append(f"{line.label}: {values[0]:.4g} at first, {values[-1]:.4g} at last")
    if panel.level is not None:
        parts.append(f"{panel.level_label}: {panel.level:.4g}")
    parts += [f"{mark.label} begins at {mark.place:,.0f} {panel.across}" for mark in panel.marks]
    return "; ".join(parts)
