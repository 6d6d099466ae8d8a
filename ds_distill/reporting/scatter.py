"""A scatter plot of what models cost and what they are worth, with the frontier as a line, as SVG or PNG.

Kinds of points differ in color and in marker, so that they can be told apart in gray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_distill.reporting.frontier import find_frontier
from ds_distill.reporting.label_places import Box, Place, place_labels
from ds_distill.reporting.panels import COLORS, MARKERS, PLAIN_TEXT, SVG_SETTINGS, embed_figure, pyplot

WIDTH, HEIGHT = 4.8, 4.4  # inches; a phone shows them at nearly this size
LABEL_SIZE = 9.5  # the font's size in points
MARKER_SIZE = 6.0
BESIDE = 3.0  # points of 1/72 inch between models of equal cost
FAR = 9.0  # the distance from which a line leads from a point to its label
LONGEST_NAME = 28
FEW = 8  # points of a plot that all have their names; of more, only those on the frontier


@dataclass(frozen=True)
class Point:
    """A point of a plot.

    Attributes:
        number: Its number in the table.
        name: The model's name, which is shown where there is room for it.
        kind: What its color and its marker stand for, such as "int8".
        cost: Its place on the horizontal axis, above 0.
        worth: Its place on the vertical axis.
        low: The lower limit of the worth's interval, or None where there is no interval.
        high: The upper limit, or None.
        certain: Whether the worth was measured on the very thing that the cost is of. The other points are hollow, and
            no part of the frontier.
    """

    number: int
    name: str
    kind: str
    cost: float
    worth: float
    low: float | None = None
    high: float | None = None
    certain: bool = True


@dataclass(frozen=True)
class Scatter:
    """A plot of points, with a logarithmic horizontal axis.

    Attributes:
        title: What is shown.
        across: The label of the horizontal axis.
        unit: The label of the vertical axis.
        points: The points.
        kinds: All kinds, in an order that is the same in all plots that stand together.
        level: A value to compare the points with, drawn as a dashed horizontal line; None for no line.
        level_label: The level's name in the legend.
        hollow_label: What a hollow point is, in the legend.
    """

    title: str
    across: str
    unit: str
    points: Sequence[Point]
    kinds: Sequence[str]
    level: float | None = None
    level_label: str = "teacher"
    hollow_label: str = "hollow: not the file's own score"


def get_frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points on the frontier, by rising cost."""
    certain = [point for point in points if point.certain]
    return [certain[index] for index in find_frontier([(point.cost, point.worth) for point in certain])]


def make_scatter_svg(scatter: Scatter, name: str) -> str:
    """Return a plot as an <svg> element to put into a page; see `panels.make_svg`."""
    with pyplot().rc_context(SVG_SETTINGS):
        figure, _ = _draw(scatter)
        return embed_figure(figure, name, scatter.title, _describe(scatter))


def write_scatter_png(scatter: Scatter, path: Path) -> None:
    """Write a plot as a PNG file, with its title."""
    plt = pyplot()
    with plt.rc_context(PLAIN_TEXT):
        figure, _ = _draw(scatter, scatter.title)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _draw(scatter: Scatter, title: str = "") -> tuple[Any, list[Place | None]]:
    """Return matplotlib's figure, and the place of each label, those of the frontier first."""
    plt = pyplot()
    legend_rows = -(-(len({point.kind for point in scatter.points}) + 3) // 2)
    size = (WIDTH, HEIGHT + 0.21 * legend_rows)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    _set_axes(axes, scatter)
    axes.set_title(title, fontsize=10)
    entries = _draw_lines(axes, scatter)
    handles = {kind: _draw_handle(axes, scatter, kind) for kind in scatter.kinds if _has_kind(scatter, kind)}
    hollow = {scatter.hollow_label: _draw_handle(axes, scatter, None)} if _has_hollow(scatter) else {}
    legend = handles | entries | hollow
    figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=9,
        handlelength=2.4,
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes stay where they are now, and with them the points
    places = _draw_points(figure, axes, scatter)
    return figure, places


def _has_kind(scatter: Scatter, kind: str) -> bool:
    return any(point.kind == kind for point in scatter.points)


def _has_hollow(scatter: Scatter) -> bool:
    return not all(point.certain for point in scatter.points)


def _look(scatter: Scatter, kind: str) -> dict[str, Any]:
    number = scatter.kinds.index(kind)
    return {"color": COLORS[number % len(COLORS)][0], "marker": MARKERS[number % len(MARKERS)]}


def _draw_handle(axes, scatter: Scatter, kind: str | None):
    """Return what stands before a kind in the legend, or before the hollow points."""
    look = _look(scatter, kind) if kind is not None else {"color": "#000000", "marker": "o"}
    fill = look["color"] if kind is not None else "#ffffff"
    return axes.plot([], [], linestyle="none", markersize=MARKER_SIZE, markerfacecolor=fill, **look)[0]


def _set_axes(axes, scatter: Scatter) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    costs = [point.cost for point in scatter.points]
    ratio = max(costs) / min(costs)
    margin = max(1.15, ratio**0.08)
    axes.set(xscale="log", xlabel=scatter.across, ylabel=scatter.unit)
    axes.set_xlim(min(costs) / margin, max(costs) * margin * max(1.0, ratio**0.06))
    steps: tuple[float, ...] = (
        (1, 2, 5) if ratio > 8 else (1, 1.5, 2, 3, 4, 5, 6, 8) if ratio > 2.5 else tuple(range(1, 10))
    )
    if ratio < 1.3:
        steps = tuple(1 + number / 5 for number in range(45))
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    limits = [limit for point in scatter.points for limit in (point.worth, point.low, point.high) if limit is not None]
    limits += [scatter.level] if scatter.level is not None else []
    height = max(limits) - min(limits) or 1.0
    axes.set_ylim(min(limits) - 0.07 * height, max(limits) + 0.1 * height)
    axes.grid(color="#b0b0b0", alpha=0.4, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_lines(axes, scatter: Scatter) -> dict[str, Any]:
    """Draw the frontier and the level; return their entries of the legend."""
    entries: dict[str, Any] = {}
    if frontier := get_frontier(scatter.points):
        costs = [point.cost for point in frontier] + [axes.get_xlim()[1]]
        worths = [point.worth for point in frontier] + [frontier[-1].worth]
        entries["frontier"] = axes.plot(
            costs, worths, drawstyle="steps-post", color="#000000", linewidth=1.4, alpha=0.8, zorder=2
        )[0]
    if scatter.level is not None:
        entries[scatter.level_label] = axes.axhline(
            scatter.level, color="#000000", linewidth=1, linestyle=(0, (7, 4)), alpha=0.7, zorder=1
        )
    return entries


def _draw_points(figure, axes, scatter: Scatter) -> list[Place | None]:
    """Draw the points with their intervals and labels; return the places of the labels."""
    frontier = get_frontier(scatter.points)
    best_first = sorted(scatter.points, key=lambda point: (point not in frontier, -point.worth, point.number))
    to_points = 72 / figure.dpi
    area = Box(*(to_points * axes.bbox.extents))
    beside: Counter[float] = Counter()
    spots: list[tuple[float, float]] = []
    lines = _line_boxes(axes, scatter, frontier, to_points)
    for point in best_first:
        x, y = to_points * axes.transData.transform((point.cost, point.worth))
        x += BESIDE * beside[point.cost]  # to the right of a better one, which leaves the frontier as it is
        beside[point.cost] += 1
        spots.append((x, y))
        cost = axes.transData.inverted().transform((x / to_points, y / to_points))[0]
        look = _look(scatter, point.kind)
        if point.low is not None and point.high is not None:
            axes.plot([cost, cost], [point.low, point.high], color=look["color"], linewidth=0.9, alpha=0.75, zorder=2)
            ends = (axes.transData.transform((cost, limit))[1] * to_points for limit in (point.low, point.high))
            bottom, top = ends
            lines.append(Box(x - 0.5, bottom, x + 0.5, top))
        fill = look["color"] if point.certain else "#ffffff"
        axes.plot([cost], [point.worth], markersize=MARKER_SIZE, markerfacecolor=fill, zorder=5, **look)
    named = frontier if len(best_first) > FEW else best_first
    texts = [_texts(point) if point in named else [str(point.number)] for point in best_first]
    sizes = [[_measure(text) for text in choices] for choices in texts]
    places = place_labels(spots, sizes, area, lines, radius=MARKER_SIZE / 2)
    for spot, choices, place in zip(spots, texts, places, strict=True):
        if place:
            _draw_label(axes, choices[place.text], spot, place.box)
    return places


def _line_boxes(axes, scatter: Scatter, frontier: Sequence[Point], to_points: float) -> list[Box]:
    """Return the steps of the frontier and the line of the level as thin boxes."""
    corners = [to_points * axes.transData.transform((point.cost, point.worth)) for point in frontier]
    left, right = (to_points * edge for edge in (axes.bbox.x0, axes.bbox.x1))
    boxes = []
    for number, (x, y) in enumerate(corners):
        end, higher = corners[number + 1] if number + 1 < len(corners) else (right, y)
        boxes += [Box(x, y - 0.5, end, y + 0.5), Box(end - 0.5, y, end + 0.5, higher)]
    if scatter.level is not None:
        height = to_points * axes.transData.transform((1, scatter.level))[1]
        boxes.append(Box(left, height - 0.5, right, height + 0.5))
    return boxes


def _texts(point: Point) -> list[str]:
    """Return what may be the label of a point, the best first."""
    name = point.name if len(point.name) <= LONGEST_NAME else f"{point.name[: LONGEST_NAME - 1].rstrip()}…"
    return [f"{point.number} {name}", str(point.number)]


def _measure(text: str) -> tuple[float, float]:
    """Return the width and height of a label in DejaVu Sans, which is wider than most fonts of a page."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    width = TextPath((0, 0), text, prop=FontProperties(family="DejaVu Sans", size=LABEL_SIZE)).get_extents().width
    return float(width) + 2, 1.2 * LABEL_SIZE


def _draw_label(axes, text: str, spot: tuple[float, float], box: Box) -> None:
    nearest = (min(max(spot[0], box.left), box.right), min(max(spot[1], box.bottom), box.top))
    away = ((nearest[0] - spot[0]) ** 2 + (nearest[1] - spot[1]) ** 2) ** 0.5
    if away > FAR:
        axes.annotate(
            "",
            nearest,
            xytext=spot,
            xycoords="figure points",
            textcoords="figure points",
            arrowprops={"arrowstyle": "-", "color": "#000000", "alpha": 0.45, "linewidth": 0.6, "shrinkA": 3},
            annotation_clip=False,
        )
    axes.annotate(
        text,
        ((box.left + box.right) / 2, (box.bottom + box.top) / 2),
        xycoords="figure points",
        ha="center",
        va="center_baseline",
        fontsize=LABEL_SIZE,
        annotation_clip=False,
        zorder=4,
        bbox={"facecolor": "#ffffff", "alpha": 0.7, "edgecolor": "none", "pad": 0.4},
    )


def _describe(scatter: Scatter) -> str:
    """Return what a plot shows in words: the points on the frontier."""
    parts = [
        f"{point.number} {point.name}, {point.kind}: {point.worth:.4g} at {point.cost:.3g}"
        for point in get_frontier(scatter.points)
    ]
    return f"{scatter.unit} over {scatter.across}, {len(scatter.points)} points; on the frontier: {'; '.join(parts)}"
