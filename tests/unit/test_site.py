"""The documentation site: it builds without a warning, needs no network, and every page is in its navigation.

The strict build ends at a link to a page or a place that does not exist. It does not look at pictures and the
navigation: tests here and in test_docs.py do.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.start import ROOT


def iterate_pages(navigation: list | dict | str) -> Iterator[str]:
    """Yield the pages of a navigation, in order."""
    if isinstance(navigation, str):
        yield navigation
        return
    for entry in navigation.values() if isinstance(navigation, dict) else navigation:
        yield from iterate_pages(entry)


def test_every_page_is_in_the_navigation_once():
    listed = list(iterate_pages(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert set(listed) == pages and len(listed) == len(pages)


@pytest.fixture
def project(tmp_path):
    pytest.importorskip("zensical", reason="the site's tool is not installed; requirements-dev.txt names it")
    pytest.importorskip("latex2mathml", reason="the site's formulas need it; requirements-dev.txt names it")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def build(project: Path) -> subprocess.CompletedProcess:
    # The command of CONTRIBUTING, in the tests' own environment.
    path = os.pathsep.join(["docs", *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    return subprocess.run(
        command,
        cwd=project,
        env=os.environ | {"PYTHONPATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_the_site_builds_strictly_and_loads_nothing_from_a_network(project):
    built = build(project)
    assert built.returncode == 0, built.stdout
    pages = list((project / "site").rglob("*.html"))
    assert len(pages) > len(list((project / "docs").rglob("*.md")))  # one of them is 404.html
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", text)
        assert not loaded, f"{page.name} loads {loaded}"
    assert "<math" in (project / "site" / "design.html").read_text(encoding="utf-8")
    assert not list((project / "site").rglob("*.py"))


@pytest.mark.parametrize("text", ["[a page](guide/nowhere.md)", "[a place](design.md#nowhere)"])
def test_a_broken_link_ends_the_build(project, text):
    with (project / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{text}\n")
    built = build(project)
    assert built.returncode != 0 and "nowhere" in re.sub(r"\x1b\[[\d;]*m", "", built.stdout), built.stdout
