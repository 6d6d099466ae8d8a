"""Pages and model cards."""

from ds_distill.report import Section, points_plot, put_section, write_page


def test_a_page_says_the_same_in_markdown_and_html(tmp_path):
    points_plot({"a": (1.0, 2.0), "b": (10.0, 1.0)}, "MB", "ms", tmp_path / "p.png", marked=("a",))
    rows = [{"who": "x < y", "ms": "1.50"}, {"who": "z", "ms": None}]
    section = Section("Times & sizes", "First `code` here.\n\nSecond.", rows, {"who": "who", "ms": "p50 (ms)"}, (1,), {"a picture": tmp_path / "p.png"})
    write_page(tmp_path, "page", "A title", "What it is.", [section])
    markdown, page = (tmp_path / "page.md").read_text(), (tmp_path / "page.html").read_text()
    assert "## Times & sizes" in markdown and "| x < y | 1.50" in markdown and "![a picture](p.png)" in markdown
    assert "Times &amp; sizes" in page and "<td>x &lt; y</td>" in page and "<code>code</code>" in page and "data:image/png;base64," in page
    assert page.count('<tr class="mark">') == 1 and "http" not in page, "one file, nothing fetched"


def test_a_section_is_put_once(tmp_path):
    card = tmp_path / "README.md"
    put_section(card, "Speed", "fast")
    put_section(card, "Formats", "one")
    put_section(card, "Speed", "faster")
    assert card.read_text() == "## Speed\n\nfaster\n\n## Formats\n\none\n"
    card.write_text("# Card\n\n## Measured\n\n1\n")
    put_section(card, "Formats", "two\n\n### detail\n\n3")
    put_section(card, "Measured", "4")
    assert card.read_text() == "# Card\n\n## Measured\n\n4\n\n## Formats\n\ntwo\n\n### detail\n\n3\n"
