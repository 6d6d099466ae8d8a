"""Plots, as PNG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_distill.recipe import Losses
from ds_distill.reporting.panels import Panel, pyplot, write_png
from ds_distill.reporting.run_panels import TermLabel, heldout_panels, run_panels, term_labels


def loss_plot(
    history: list,
    heldout: dict[str, list],
    path: Path,
    title: str,
    *,
    labels: Mapping[str, TermLabel] | None = None,
    teacher: Mapping[str, Mapping[str, Any]] | None = None,
    stages: list | None = None,
) -> None:
    """Write a PNG of a run's training and held-out losses, its held-out accuracy and its other terms over tokens.

    Args:
        history: {step, tokens, loss, each term} for each step.
        heldout: {step, tokens, each figure} for each evaluation, by the name of the set. Accuracies are those at
            [MASK] where the last rows have them, with error bars where the rows have standard errors.
        path: The file to write.
        title: The title of the figure.
        labels: The terms in words, from `term_labels`; without them they are shown by their names.
        teacher: The teacher's held-out figures by the name of the set, which are drawn as a horizontal line.
        stages: {stage, step, tokens} for each stage of the run, whose beginnings are marked.
    """
    write_png(run_panels(history, heldout, labels or term_labels(Losses()), teacher or {}, stages or []), path, title)


def comparison_plot(runs: dict[str, dict[str, list]], path: Path) -> list[Panel]:
    """Write a PNG of several runs' held-out losses over tokens, with one panel per held-out set.

    `runs` maps label → set → rows {step, tokens, each figure}. Returns the panels.
    """
    named = {label.replace("_", " "): curves for label, curves in runs.items()}
    panels = heldout_panels(named, {}, accuracy=False)
    write_png(panels, path)
    return panels


def time_to_loss_plot(curves: dict[str, list], path: Path) -> None:
    """Write a PNG of held-out figures over minutes of training, with a row of panels per held-out set.

    `curves` maps label → [minutes, step, {set: [masked-LM loss, KL, agreement]}] rows.
    """
    plt = pyplot()

    sets = list(next(iter(curves.values()))[0][2])
    figure, panels = plt.subplots(
        len(sets), 3, figsize=(13, 3.4 * len(sets)), layout="constrained", squeeze=False, sharex=True
    )
    names = (
        "masked-LM loss (nats per masked token)",
        "KL divergence from the teacher (nats per token)",
        "top-1 agreement with the teacher (share)",
    )
    for line, name in zip(panels, sets, strict=True):
        for number, (axes, axis_label) in enumerate(zip(line, names, strict=True)):
            for label, rows in curves.items():
                axes.plot(
                    [row[0] for row in rows],
                    [row[2][name][number] for row in rows],
                    "o-",
                    markersize=3,
                    linewidth=1,
                    label=label,
                )
            axes.set(ylabel=axis_label, title=name or "the corpus's held-out documents")
            axes.grid(alpha=0.3)
        line[0].legend()
    for axes in panels[-1]:
        axes.set(xlabel="minutes of training")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def bars_plot(values: dict[str, float], axis_label: str, path: Path, marked: tuple[str, ...] = ()) -> None:
    """Write a PNG with one horizontal bar per label, in the order given, each with its value.

    Args:
        values: The value of each label.
        axis_label: The label of the axis.
        path: The file to write.
        marked: The labels whose bars stand out.
    """
    plt = pyplot()

    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.45 * len(values)), layout="constrained")
    bars = axes.barh(
        list(values), list(values.values()), color=["tab:blue" if label in marked else "lightgray" for label in values]
    )
    axes.bar_label(
        bars, labels=[f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values.values()], padding=4
    )
    axes.invert_yaxis()
    axes.set(xlabel=axis_label, xlim=(0, 1.12 * max(values.values())))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def points_plot(
    points: dict[str, tuple[float, float]], across: str, up: str, path: Path, marked: tuple[str, ...] = ()
) -> None:
    """Write a PNG of labeled points, with both axes logarithmic.

    Args:
        points: Maps label → (x, y).
        across: The label of the horizontal axis.
        up: The label of the vertical axis.
        path: The file to write.
        marked: The labels that stand out.
    """
    plt = pyplot()
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, axes = plt.subplots(figsize=(10, max(4.5, 0.26 * len(points) + 1)), layout="constrained")
    # Points lie in clusters, where labels next to them would cover each other. So the labels form a
    # column at the right, in the points' own order, with a line to each point.
    for row, (label, (x, y)) in enumerate(sorted(points.items(), key=lambda point: point[1][1])):
        color = "tab:blue" if label in marked else "gray"
        axes.plot(x, y, "o", color=color, markersize=6)
        line = {"arrowstyle": "-", "color": color, "alpha": 0.35, "relpos": (0, 0.5)}
        axes.annotate(
            label,
            (x, y),
            xytext=(1.03, (row + 0.5) / len(points)),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            color="black" if label in marked else "dimgray",
            arrowprops=line,
        )
    axes.set(xlabel=across, ylabel=up, xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(ScalarFormatter() if _within_a_decade(points, axis is axes.yaxis) else NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _within_a_decade(points: dict[str, tuple[float, float]], up: bool) -> bool:
    """Return whether an axis has so few powers of ten that the numbers between them need labels too."""
    values = [point[up] for point in points.values()]
    return not values or max(values) < 15 * min(values)
