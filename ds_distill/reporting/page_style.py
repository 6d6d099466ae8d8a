"""The style sheet of a page: readable on a phone, on a wide screen and in print, light and dark."""

from ds_distill.reporting.panels import COLORS

_LIGHT = "\n".join(f"  --series-{number}: {light};" for number, (light, _) in enumerate(COLORS))
_DARK = "\n".join(f"    --series-{number}: {dark};" for number, (_, dark) in enumerate(COLORS))
PAGE_COLORS = {"light": "#ffffff", "dark": "#15181c"}

# The dark colors are for screens alone, because paper is white.
STYLE = (
    f"""
:root {{
  color-scheme: light dark;
  --page: {PAGE_COLORS["light"]}; --ink: #1b1d20; --soft: #5c6166; --line: #d5d8db; --mark: #e8f1fb; --card: #f5f6f8;
  --grid: #b0b0b0;
{_LIGHT}
}}
@media screen and (prefers-color-scheme: dark) {{
  :root {{
    --page: {PAGE_COLORS["dark"]}; --ink: #e6e8ea; --soft: #a3a9af; --line: #3d4248; --mark: #1c2f44; --card: #1f2328;
    --grid: #5a6067;
{_DARK}
  }}
  img {{ filter: invert(0.9) hue-rotate(180deg); }}
}}
@media screen {{ :root {{ background: var(--page); }} }}
@media print {{ :root {{ color-scheme: light; }} }}
"""
    + """
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.75rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 0 0 0.25rem; }
p { max-width: 48rem; margin: 0.5rem 0; overflow-wrap: break-word; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
pre { background: var(--card); padding: 0.6rem 0.8rem; border-radius: 6px; overflow-x: auto; }
pre code { overflow-wrap: normal; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; margin: 1rem 0; padding: 0; }
nav a { color: var(--series-0); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: 0.8rem; }
.cards { margin: 1.25rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.7rem 0.9rem; }
.card dt { color: var(--soft); font-size: 0.9rem; }
.card dd { margin: 0; }
.card .value { font-size: 1.7rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.card .value small { font-size: 1rem; font-weight: 400; }
.card .note { font-size: 0.85rem; color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure, .figures { margin: 1rem 0; }
.figures figure { margin: 0; min-width: 0; }
figcaption, .caption { color: var(--soft); font-size: 0.85rem; }
svg { display: block; width: 100%; max-width: 38rem; height: auto; }
svg text { fill: currentColor; }
img { max-width: 100%; min-width: 40rem; height: auto; }
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 2px solid var(--series-0); }
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: 0.3rem 1rem 0.3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th, td { background: var(--page); }
th { vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; z-index: 1; min-width: 8rem; max-width: 10rem; }
td { overflow-wrap: break-word; max-width: 24rem; }
@media (max-width: 40rem) {
  td:not(.number) { min-width: 7rem; }
  td:first-child { overflow-wrap: anywhere; }
}
@media (min-width: 40rem) {
  th:first-child, td:first-child { max-width: 22rem; }
  td:first-child code { overflow-wrap: normal; }
}
.number { text-align: right; }
td.number { white-space: nowrap; }
.mark td { background: var(--mark); }
footer { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 0.5rem; }
footer { color: var(--soft); font-size: 0.85rem; }
footer p { max-width: none; }
@media print {
  @page { margin: 15mm; }
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; }
  nav { display: none; }
  h2, h3, thead, section > p { break-after: avoid; }
  .card .value { font-size: 14pt; }
  .card .value small { font-size: 9pt; }
  tr, figure, .card, pre, p { break-inside: avoid; }
  .wide { overflow: visible; }
  table { width: 100%; font-size: 8pt; }
  th, td { padding-right: 0.4rem; }
  th:first-child, td:first-child { position: static; min-width: 5rem; }
  td:first-child code { overflow-wrap: anywhere; }
  img { min-width: 0; }
  .cards { grid-template-columns: repeat(4, 1fr); }
  .figures { grid-template-columns: repeat(2, 1fr); gap: 0.75rem; }
  pre { white-space: pre-wrap; border: 1px solid var(--line); }
  .mark td { font-weight: 600; }
}
"""
)
