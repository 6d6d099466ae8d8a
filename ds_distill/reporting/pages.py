"""Pages of text, tables and plots, in Markdown and HTML."""

import base64
import html
import re
from dataclasses import dataclass, field
from pathlib import Path

from ds_distill.reporting.tables import NOT_RUN, _cell, table


@dataclass
class Section:
    """A section of a page.

    Args:
        text: Paragraphs, with `code` in backticks.
        rows: The rows of `table`.
        columns: The columns of `table`.
        emphasized: The numbers of rows that stand out.
        pictures: Maps a caption to a PNG file in the page's folder.
    """

    heading: str
    text: str = ""
    rows: list[dict] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    emphasized: tuple[int, ...] = ()
    pictures: dict[str, Path] = field(default_factory=dict)


def write_page(folder: Path, name: str, title: str, lead: str, sections: list[Section]) -> None:
    """Write folder/NAME.md and folder/NAME.html with the same content.

    The HTML is a single file with its pictures embedded.
    """
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
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        encoding="utf-8",
    )


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
            mark = ' class="mark"' if i in section.emphasized else ""
            lines.append(
                f"<tr{mark}>"
                + "".join(f"<td{k}>{_inline(text)}</td>" for k, text in zip(kind, line, strict=True))
                + "</tr>"
            )
        out.append(
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
            + "\n".join(lines)
            + "\n</tbody></table></div>"
        )
    for caption, file in section.pictures.items():
        data = base64.b64encode(file.read_bytes()).decode()
        image = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
        out.append(f'<figure class="wide">{image}<figcaption>{_inline(caption)}</figcaption></figure>')
    return "\n".join(part for part in out if part) + "\n</section>\n"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>\n" for part in text.split("\n\n") if part.strip())
