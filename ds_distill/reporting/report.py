"""The one maker of pages, tables and plots."""

import base64
import html
import json
import math
import os
import re
from dataclasses import dataclass, field
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


NOT_RUN = "not run"  # what stands in a cell that is still to be measured


def _cell(value) -> str:
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_whole(file: Path, text: str) -> None:
    """Whole or not at all: what finds the file takes it for done."""
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def json_text(value: object, indent: int | None = None) -> str:
    """Return `value` as JSON that any reader takes. What is not a finite number has not been measured: null. (NaN and
    Infinity, which Python writes, are no JSON.)"""
    return json.dumps(_measured(value), indent=indent, allow_nan=False)


def _measured(value: object) -> object:
    if isinstance(value, dict):
        return {key: _measured(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_measured(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, value: dict) -> None:
    write_whole(file, json_text(value, indent=2) + "\n")


def write_summary(summary: dict, folder: Path) -> None:
    """folder/summary.json: what the command's last line says. A model's folder may be published as it lies: there its own path is `.`"""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").is_file():
        inside = {key: value for key, value in summary.items() if isinstance(value, str) and Path(value).is_relative_to(folder)}
        summary = summary | {key: os.path.relpath(value, folder) for key, value in inside.items()}
    write_json(folder / "summary.json", summary)


MADE_WITH = "made with ds-distill"
PIPELINES = {"masked-lm": "fill-mask", "classification": "text-classification", "question-answering": "question-answering",
             "encoder": "feature-extraction"}  # fmt: skip


def front_matter(head: str, **more: str) -> str:
    """The YAML that a model card begins with. head: a key of PIPELINES; more: further keys, such as the license where it is known."""
    entries = {"library_name": "transformers", "pipeline_tag": PIPELINES[head]} | more
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in entries.items()) + "---\n\n"


def model_card(title: str, summary: dict, recipe: dict, fingerprint: str) -> str:
    """The export's README.md: measured figures, recipe and data fingerprint."""
    figures = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    return (
        front_matter("masked-lm") + f"# {title}\n\nA masked language model {MADE_WITH}.\n\n"
        "## Measured\n\n" + table([{"figure": key, "value": value} for key, value in figures.items()], {"figure": "figure", "value": "value"})
        + f"\n\nHeld-out figures are for this run's own held-out documents and masks.\n\n## Data\n\nfingerprint `{fingerprint}`\n\n"
        "## Recipe\n\n```json\n" + json_text(_without_folders(recipe), indent=2) + "\n```\n"
    )  # fmt: skip


def task_card(head: str, task: str, metrics: dict[str, float | None], settings: dict, remark: str = "") -> str:
    """The README.md of a fine-tuned folder: what the folder scores on the task's dev set, and how it was trained.
    remark: what is to be said of the scores."""
    rows = [{"metric": name.replace("_", " "), "value": value} for name, value in metrics.items()]
    remark = f"{remark}\n\n" if remark else ""
    return (
        front_matter(head) + f"# A model for {task}\n\nAn encoder fine-tuned on the task {task} with ds-distill.\n\n"
        f"## Measured\n\n{table(rows, {'metric': 'on the dev set', 'value': 'value'})}\n\n{remark}"
        "## Settings\n\n```json\n" + json_text(settings, indent=2) + "\n```\n"
    )


def _without_folders(value: object) -> object:
    """A recipe's values as a published file may say them: of a path of this machine the name alone."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


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


def bars_plot(values: dict[str, float], what: str, path: Path, marked: tuple[str, ...] = ()) -> None:
    """PNG of a horizontal bar a label, in the order given, with its value; `marked`: the labels of bars that stand out."""
    plt = _pyplot()

    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.45 * len(values)), layout="constrained")
    bars = axes.barh(list(values), list(values.values()), color=["tab:blue" if label in marked else "lightgray" for label in values])
    axes.bar_label(bars, labels=[f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values.values()], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel=what, xlim=(0, 1.12 * max(values.values())))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def points_plot(points: dict[str, tuple[float, float]], across: str, up: str, path: Path, marked: tuple[str, ...] = ()) -> None:
    """PNG of labelled points, both axes logarithmic; points: label → (x, y); marked: the labels that stand out."""
    plt = _pyplot()
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, axes = plt.subplots(figsize=(10, max(4.5, 0.26 * len(points) + 1)), layout="constrained")
    # points lie in clusters, where labels beside them would cover each other: a column at the right, in the points' own order, and a line to each
    for place, (label, (x, y)) in enumerate(sorted(points.items(), key=lambda point: point[1][1])):
        colour = "tab:blue" if label in marked else "gray"
        axes.plot(x, y, "o", color=colour, markersize=6)
        line = {"arrowstyle": "-", "color": colour, "alpha": 0.35, "relpos": (0, 0.5)}
        axes.annotate(label, (x, y), xytext=(1.03, (place + 0.5) / len(points)), textcoords="axes fraction", fontsize=8, va="center",
                      color="black" if label in marked else "dimgray", arrowprops=line)  # fmt: skip
    axes.set(xlabel=across, ylabel=up, xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(ScalarFormatter() if _within_a_decade(points, axis is axes.yaxis) else NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _within_a_decade(points: dict[str, tuple[float, float]], up: bool) -> bool:
    """Whether the axis has so few powers of ten that the numbers between them must be written too."""
    values = [point[up] for point in points.values()]
    return not values or max(values) < 15 * min(values)


@dataclass
class Section:
    """A part of a page. text: paragraphs, with `code` in backticks; rows, columns: as for `table`; emphasised: rows that stand out, by number;
    pictures: caption → PNG file in the page's folder."""

    heading: str
    text: str = ""
    rows: list[dict] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    emphasised: tuple[int, ...] = ()
    pictures: dict[str, Path] = field(default_factory=dict)


def write_page(folder: Path, name: str, title: str, lead: str, sections: list[Section]) -> None:
    """folder/NAME.md and folder/NAME.html, the same in both; the HTML is one file, its pictures within."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown = [f"# {title}", lead]
    for section in sections:
        markdown += [
            f"## {section.heading}",
            *([section.text] if section.text else []),
            *([table(section.rows, section.columns)] if section.rows else []),
        ]
        markdown += [f"![{caption}]({file.name})" for caption, file in section.pictures.items()]
    (folder / f"{name}.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    body = f"<h1>{_inline(title)}</h1>\n{_paragraphs(lead)}" + "".join(map(_section_html, sections))
    (folder / f"{name}.html").write_text(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    , encoding="utf-8")


_STYLE = """
:root { color-scheme: light dark; --line: #d8d8d8; --soft: #6a6a6a; --mark: #eaf2fb; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #a0a0a0; --mark: #1d2b3a; }
  img { filter: invert(0.9) hue-rotate(180deg); }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p { max-width: 48rem; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; }
figcaption { color: var(--soft); font-size: 0.9rem; }
img { max-width: 100%; min-width: 40rem; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { min-width: 8rem; }
@media (min-width: 40rem) { td:first-child { white-space: nowrap; } }
.number { text-align: right; }
td.number { white-space: nowrap; }
.mark { background: var(--mark); }
"""


def _section_html(section: Section) -> str:
    out = [f"<section>\n<h2>{_inline(section.heading)}</h2>", _paragraphs(section.text)]
    if section.rows:
        cells = [[_cell(row.get(key)) for key in section.columns] for row in section.rows]
        number = [all(re.match(rf"[-+−–\d]|{NOT_RUN}", line[i]) for line in cells) for i in range(len(section.columns))]
        kind = [' class="number"' if is_number else "" for is_number in number]
        head = "".join(f"<th{k}>{_inline(text)}</th>" for k, text in zip(kind, section.columns.values(), strict=True))
        lines = []
        for i, line in enumerate(cells):
            mark = ' class="mark"' if i in section.emphasised else ""
            lines.append(f"<tr{mark}>" + "".join(f"<td{k}>{_inline(text)}</td>" for k, text in zip(kind, line, strict=True)) + "</tr>")
        out.append(f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>")
    for caption, file in section.pictures.items():
        data = base64.b64encode(file.read_bytes()).decode()
        image = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        out.append(f'<figure class="wide">{image}<figcaption>{_inline(caption)}</figcaption></figure>')
    return "\n".join(part for part in out if part) + "\n</section>\n"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>\n" for part in text.split("\n\n") if part.strip())


def put_section(card: Path, heading: str, text: str) -> None:
    """Write `## heading` and `text` into the Markdown file `card`, in the place of the section of that name if there is one; a new file otherwise."""
    before = card.read_text(encoding="utf-8") if card.is_file() else ""
    new = f"## {heading}\n\n{text.strip()}\n"
    there = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", before, flags=re.M | re.S)
    if there:
        after = before[: there.start()] + new + ("\n" if before[there.end() :] else "") + before[there.end() :]
    else:
        after = (before.rstrip("\n") + "\n\n" if before else "") + new
    card.write_text(after, encoding="utf-8")
