"""Plots, as PNG files."""

import itertools
import math
from pathlib import Path

from ds_distill.reporting.heldout import POSITIONS, shared_kind


def _pyplot():
    # The import is here, because otherwise every --help would wait for it.
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def loss_plot(history: list, heldout: dict[str, list], path: Path, title: str) -> None:
    """Write a PNG of the training losses and the held-out losses over tokens.

    Args:
        history: {step, tokens, loss, each term} for each step.
        heldout: {step, tokens, each figure} for each evaluation, by the name of the set. Sets with a figure
            at [MASK] show this one, with its standard error. The corpus's own also shows its loss at all
            selected positions, which is the one that the training loss compares with.
        path: The file to write.
        title: The title of the figure.
    """
    plt = _pyplot()

    # a run that an earlier version began has rows with more terms
    names = dict.fromkeys(name for row in history for name in row)
    terms = [
        name
        for name in names
        if name not in ("step", "tokens", "loss", "mlm") and any(row.get(name) for row in history)
    ]
    panel_count = 2 if terms else 1
    figure, panels = plt.subplots(
        1, panel_count, figsize=(2 + 4 * panel_count, 4.5), layout="constrained", squeeze=False
    )
    million = [row["tokens"] / 1e6 for row in history]
    mlm_axes = panels[0][0]
    mlm_axes.plot(
        million,
        [row["mlm"] for row in history],
        label=f"training, {POSITIONS['mlm']}",
        linewidth=1,
        alpha=0.5,
        color="tab:orange",
    )
    for (name, rows), style in zip(heldout.items(), itertools.cycle(("o-", "^--", "s:", "d-."))):
        label = f"held-out {name}".strip()
        kind = "mask" if any("mask_loss" in row for row in rows) else "mlm"
        _plot_losses(mlm_axes, rows, kind, style, label=f"{label}, {POSITIONS[kind]}", color="black")
        if not name and kind != "mlm":
            _plot_losses(mlm_axes, rows, "mlm", style, label=f"{label}, {POSITIONS['mlm']}", color="tab:orange")
    mlm_axes.set(ylabel="masked-LM loss (nats per position)")
    if terms:
        for name in terms:
            label = {"kl": "KL (T² · nats per token)", "cosine": "cosine distance"}.get(name, name)
            panels[0][1].plot(million, [row.get(name) for row in history], label=label, linewidth=1)
        panels[0][1].set(ylabel="distance from the teacher (training)", ylim=(0, None))
    for axes in panels[0]:
        axes.set(xlabel="tokens (million)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_losses(axes, rows: list[dict], kind: str, style: str, **options) -> None:
    """Draw the held-out losses of a kind of positions over tokens, with bars of one standard error."""
    losses, errors = ([_number(row.get(f"{kind}_{key}")) for row in rows] for key in ("loss", "loss_se"))
    axes.errorbar(
        [row["tokens"] / 1e6 for row in rows],
        losses,
        yerr=None if all(map(math.isnan, errors)) else errors,
        fmt=style,
        markersize=4,
        **{"linewidth": 1, "elinewidth": 1} | options,
    )


def _number(value: float | None) -> float:
    """Return the value, or the number that leaves a gap in a line."""
    return math.nan if value is None else value


def comparison_plot(runs: dict[str, dict[str, list]], path: Path) -> None:
    """Write a PNG of several runs' held-out losses over tokens, with one panel per held-out set.

    The losses are those at [MASK] where all runs have them, else those at all selected positions.
    `runs` maps label → set → rows {step, tokens, each figure}.
    """
    plt = _pyplot()

    kinds = list(dict.fromkeys(kind for sets in runs.values() for kind in sets))
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4.5 * len(kinds), 4.5), layout="constrained", squeeze=False, sharey=True
    )
    positions = shared_kind(row for sets in runs.values() for rows in sets.values() for row in rows[-1:])
    for axes, kind in zip(panels[0], kinds, strict=True):
        for label, style in zip(runs, itertools.cycle(("o-", "^--", "s:", "d-."))):
            rows = runs[label].get(kind, [])
            _plot_losses(axes, rows, positions, style, label=label.replace("_", " "), linewidth=1.2)
        axes.set(title=f"held-out: {kind.removeprefix('heldout_').replace('_', ' ')}", xlabel="tokens (million)")
        axes.grid(alpha=0.3)
    panels[0][0].set(ylabel=f"masked-LM loss {POSITIONS[positions]} (nats per position)")
    panels[0][-1].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def time_to_loss_plot(curves: dict[str, list], path: Path) -> None:
    """Write a PNG of held-out figures over minutes of training, with a row of panels per held-out set.

    `curves` maps label → [minutes, step, {set: [masked-LM loss, KL, agreement]}] rows.
    """
    plt = _pyplot()

    sets = list(next(iter(curves.values()))[0][2])
    figure, panels = plt.subplots(
        len(sets), 3, figsize=(13, 3.4 * len(sets)), layout="constrained", squeeze=False, sharex=True
    )
    names = (
        "masked-LM loss at all selected positions (nats)",
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
    plt = _pyplot()

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
    plt = _pyplot()
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
