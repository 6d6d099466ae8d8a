"""Pages of text, cards, tables and figures, in Markdown and HTML."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ds_distill.reporting.page_style import STYLE
from ds_distill.reporting.panels import Panel, make_svg
from ds_distill.reporting.scatter import Scatter, make_scatter_svg
from ds_distill.reporting.tables import NOT_RUN, cell, table


@dataclass(frozen=True)
class Card:
    """A figure that a page begins with.

    Attributes:
        label: What it is.
        value: The figure, as text.
        error: What stands behind it in smaller letters, such as its standard error.
        note: Where it comes from.
    """

    label: str
    value: str
    error: str = ""
    note: str = ""


@dataclass
class Section:
    """A section of a page.

    Args:
        text: Paragraphs, with `code` in backticks.
        rows: The rows of `table`.
        columns: The columns of `table`.
        emphasized: The numbers of rows that stand out.
        pictures: Maps a caption to a PNG file in the page's folder.
        panels: What the HTML shows in place of `pictures`, as SVG that follows the page's colors and width.
        commands: Maps a remark on a command to the command.
        plots_first: Whether the pictures or panels stand before the table, not after it.
        notes: Paragraphs after the table and the pictures.
    """

    heading: str
    text: str = ""
    rows: list[dict] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    emphasized: tuple[int, ...] = ()
    pictures: dict[str, Path] = field(default_factory=dict)
    panels: Sequence[Panel | Scatter] = ()
    commands: dict[str, str] = field(default_factory=dict)
    plots_first: bool = False
    notes: str = ""


def write_page(
    folder: Path,
    name: str,
    title: str,
    lead: str,
    sections: list[Section],
    *,
    cards: Sequence[Card] = (),
    footer: str = "",
) -> None:
    """Write folder/NAME.md and folder/NAME.html with the same content, see `write_html`.

    Markdown has the pictures of a section in place of its panels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    markdown = [f"# {title}", lead]
    if cards:
        markdown.append("\n".join(f"- {card.label}: **{card.value}** {card.error} ({card.note})" for card in cards))
    for section in sections:
        rows = [table(section.rows, section.columns)] if section.rows else []
        pictures = [f"![{caption}]({file.name})" for caption, file in section.pictures.items()]
        markdown += [f"## {section.heading}", *([section.text] if section.text else [])]
        markdown += [*pictures, *rows] if section.plots_first else [*rows, *pictures]
        markdown += [section.notes] if section.notes else []
        markdown += [f"```\n# {remark}\n{command}\n```" for remark, command in section.commands.items()]
    markdown += ["---", footer] if footer else []
    (folder / f"{name}.md").write_text("\n\n".join(markdown) + "\n", encoding="utf-8")
    write_html(folder / f"{name}.html", title, lead, sections, cards=cards, footer=footer)


def write_html(
    file: Path, title: str, lead: str, sections: list[Section], *, cards: Sequence[Card] = (), footer: str = ""
) -> None:
    """Write a page as one HTML file, which needs no other file, no script and no network.

    The same content gives the same bytes.

    Args:
        file: The file to write.
        title: The page's title.
        lead: Its first paragraphs.
        sections: Its sections.
        cards: The figures that it begins with.
        footer: Its last paragraphs.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"<header>\n<h1>{_inline(title)}</h1>\n{_paragraphs(lead)}</header>\n", _cards_html(cards)]
    if len(sections) > 3:
        links = (
            f'<li><a href="#section-{i}">{_inline(section.heading)}</a></li>' for i, section in enumerate(sections)
        )
        parts.append(f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav>\n')
    parts.append("<main>\n")
    parts += [_section_html(section, number) for number, section in enumerate(sections)]
    parts.append("</main>\n")
    parts += [f"<footer>\n{_paragraphs(footer)}</footer>\n"] if footer else []
    file.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{''.join(parts)}</body>\n</html>\n",
        encoding="utf-8",
    )


def _cards_html(cards: Sequence[Card]) -> str:
    shown = []
    for card in cards:
        error = f" <small>{_inline(card.error)}</small>" if card.error else ""
        note = f'<dd class="note">{_inline(card.note)}</dd>' if card.note else ""
        shown.append(
            f'<div class="card"><dt>{_inline(card.label)}</dt>'
            f'<dd class="value">{_inline(card.value)}{error}</dd>{note}</div>\n'
        )
    return f'<dl class="cards">\n{"".join(shown)}</dl>\n' if shown else ""


def _section_html(section: Section, number: int) -> str:
    out = [f'<section id="section-{number}">\n<h2>{_inline(section.heading)}</h2>', _paragraphs(section.text)]
    parts = [_table_html(section), _figures_html(section, number)]
    out += parts[::-1] if section.plots_first else parts
    out.append(_paragraphs(section.notes))
    out += [
        f"<pre><code># {html.escape(remark)}\n{html.escape(command)}</code></pre>"
        for remark, command in section.commands.items()
    ]
    return "\n".join(part for part in out if part) + "\n</section>\n"


def _table_html(section: Section) -> str:
    if not section.rows:
        return ""
    cells = [[cell(row.get(key)) for key in section.columns] for row in section.rows]
    # The first column has the names of the rows, some of which may begin with a digit.
    kind = [
        ' class="number"' if i and all(re.match(rf"[-+−–\d]|{NOT_RUN}", line[i]) for line in cells) else ""
        for i in range(len(section.columns))
    ]
    head = "".join(
        f'<th scope="col"{k}>{_inline(text)}</th>' for k, text in zip(kind, section.columns.values(), strict=True)
    )
    lines = []
    for i, line in enumerate(cells):
        mark = ' class="mark"' if i in section.emphasized else ""
        lines.append(
            f"<tr{mark}>"
            + "".join(f"<td{k}>{_inline(text)}</td>" for k, text in zip(kind, line, strict=True))
            + "</tr>"
        )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="Table: {html.escape(section.heading)}">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _figures_html(section: Section, number: int) -> str:
    if section.panels:
        figures = (
            f"<figure><h3>{_inline(panel.title)}</h3>\n{_svg(panel, f'figure-{number}-{i}')}</figure>\n"
            for i, panel in enumerate(section.panels)
        )
        titles = {panel.title for panel in section.panels}
        captions = "".join(
            f'<p class="caption">{_inline(caption)}</p>' for caption in section.pictures if caption not in titles
        )
        return f'<div class="figures">\n{"".join(figures)}</div>{captions}'
    images = []
    for caption, file in section.pictures.items():
        data = base64.b64encode(file.read_bytes()).decode()
        image = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        images.append(f'<figure class="wide">{image}<figcaption>{_inline(caption)}</figcaption></figure>')
    return "\n".join(images)


def _svg(panel: Panel | Scatter, name: str) -> str:
    return make_scatter_svg(panel, name) if isinstance(panel, Scatter) else make_svg(panel, name)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>\n" for part in text.split("\n\n") if part.strip())
