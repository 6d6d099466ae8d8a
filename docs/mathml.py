"""A Markdown extension for the site: formulas become MathML, which browsers show without scripts or fonts.

Formulas are written as git hosts take them: `$…$` in a line of text, and a fenced block `math`.
"""

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor


def block(source: str, language: str, css_class: str, options: dict, md: Markdown, **more) -> str:
    """Return a fenced block as a formula of its own."""
    return f"<p>{convert(source.strip(), display='block')}</p>"


class Inline(InlineProcessor):
    """Reads `$…$`: no space after the first sign or before the second, no letter beside them."""

    def handleMatch(self, m, data):
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class Formulas(Extension):
    """Adds `Inline` after code, in which a dollar sign is none of a formula, and before escapes."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Inline(r"(?<![\w$])\$(?=\S)([^$]+)(?<=\S)\$(?![\w$])", md), "formula", 185)


def makeExtension(**options):  # the name that Markdown looks for
    """Return the extension."""
    return Formulas(**options)
