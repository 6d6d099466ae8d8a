"""The one maker of pages, tables and plots."""

import json
from pathlib import Path


def _pyplot():
    import matplotlib  # here, since every --help would wait for it

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def loss_plot(history: list, heldout: dict[str, list], path: Path, title: str) -> None:
    """PNG of the training losses and the held-out losses over tokens.

    history: [step, tokens, total, kl, mlm, cosine] a step; heldout: by name of the set, [step, tokens, loss, accuracy] an evaluation.
    """
    plt = _pyplot()

    taught = any(row[3] or row[5] for row in history)
    figure, panels = plt.subplots(1, 1 + taught, figsize=(6 + 4 * taught, 4.5), layout="constrained", squeeze=False)
    million = [row[1] / 1e6 for row in history]
    guessing = panels[0][0]
    guessing.plot(million, [row[4] for row in history], label="training", linewidth=1, alpha=0.5, color="tab:orange")
    for (name, rows), style in zip(heldout.items(), ("ko-", "k^--", "ks:", "kd-.") * len(heldout), strict=False):
        guessing.plot([row[1] / 1e6 for row in rows], [row[2] for row in rows], style, label=f"held out {name}".strip(), markersize=4, linewidth=1)
    guessing.set(ylabel="masked-LM loss (nats a masked token)")
    if taught:
        for column, name in ((3, "KL (T²·nats a token)"), (5, "cosine distance")):
            panels[0][1].plot(million, [row[column] for row in history], label=name, linewidth=1)
        panels[0][1].set(ylabel="distance from the teacher, training", ylim=(0, None))
    for axes in panels[0]:
        axes.set(xlabel="tokens (million)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def comparison_plot(runs: dict[str, dict[str, list]], path: Path) -> None:
    """PNG of several runs' held-out losses over tokens, a panel for each held-out set; runs: label → set → [step, tokens, loss, accuracy] rows."""
    plt = _pyplot()

    kinds = list(dict.fromkeys(kind for sets in runs.values() for kind in sets))
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 4.5), layout="constrained", squeeze=False, sharey=True)
    for axes, kind in zip(panels[0], kinds, strict=True):
        for label, style in zip(runs, ("o-", "^--", "s:", "d-.") * len(runs), strict=False):
            rows = runs[label].get(kind, [])
            axes.plot([row[1] / 1e6 for row in rows], [row[2] for row in rows], style, label=label.replace("_", " "), markersize=4, linewidth=1.2)
        axes.set(title=f"held out: {kind.removeprefix('heldout_').replace('_', ' ')}", xlabel="tokens (million)")
        axes.grid(alpha=0.3)
    panels[0][0].set(ylabel="masked-LM loss (nats a masked token)")
    panels[0][-1].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Markdown of `rows`; columns: key → heading. Missing cells say "–"."""
    cells = [list(columns.values())] + [[_cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_summary(summary: dict, folder: Path) -> None:
    """folder/summary.json: what the command's last line says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def model_card(title: str, summary: dict, recipe: dict, fingerprint: str) -> str:
    """The export's README.md: measured figures, recipe and data fingerprint."""
    figures = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: fill-mask\n---\n\n# {title}\n\nA masked language model made with ds-distill.\n\n"
        "## Measured\n\n" + table([{"figure": key, "value": value} for key, value in figures.items()], {"figure": "figure", "value": "value"})
        + f"\n\nHeld-out figures are for this run's own held-out documents and masks.\n\n## Data\n\nfingerprint `{fingerprint}`\n\n"
        "## Recipe\n\n```json\n" + json.dumps(recipe, indent=2) + "\n```\n"
    )  # fmt: skip


def race_plot(curves: dict[str, list], path: Path) -> None:
    """PNG of held-out figures over minutes of training, a row of panels for each held-out set; curves: label → [minutes, step, {set: [masked-LM loss,
    KL, agreement]}] rows."""
    plt = _pyplot()

    sets = list(next(iter(curves.values()))[0][2])
    figure, panels = plt.subplots(len(sets), 3, figsize=(13, 3.4 * len(sets)), layout="constrained", squeeze=False, sharex=True)
    names = ("masked-LM loss (nats a masked token)", "KL from the teacher (nats a token)", "first guess is the teacher's (share)")
    for line, name in zip(panels, sets, strict=True):
        for number, (axes, what) in enumerate(zip(line, names, strict=True)):
            for label, rows in curves.items():
                axes.plot([row[0] for row in rows], [row[2][name][number] for row in rows], "o-", markersize=3, linewidth=1, label=label)
            axes.set(ylabel=what, title=name or "the corpus's own held-out documents")
            axes.grid(alpha=0.3)
        line[0].legend()
    for axes in panels[-1]:
        axes.set(xlabel="minutes of training")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def bars_plot(values: dict[str, float], what: str, path: Path, marked: str | None = None) -> None:
    """PNG of a horizontal bar a label, in the order given, with its value; `marked`: the label of the bar that stands out."""
    plt = _pyplot()

    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.45 * len(values)), layout="constrained")
    bars = axes.barh(list(values), list(values.values()), color=["tab:blue" if label == marked else "lightgray" for label in values])
    axes.bar_label(bars, labels=[f"{value:,.4g}" if value < 100 else f"{value:,.0f}" for value in values.values()], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel=what, xlim=(0, 1.12 * max(values.values())))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
