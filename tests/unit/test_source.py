"""Test the source itself for mistakes that no other test would notice until it runs elsewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [*sorted(ROOT.glob("ds_distill/**/*.py")), *sorted(ROOT.glob("benchmarks/**/*.py")), ROOT / "launch.sh"]


def lacks_encoding(call: ast.Call) -> bool:
    """Return whether a call reads or writes text in the encoding of the machine on which it runs."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
        return False
    if name == "read_text":
        return not call.args
    if name == "write_text":
        return len(call.args) < 2
    if name != "open":
        return False
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = modes or call.args[1 if isinstance(call.func, ast.Name) else 0 :][:1]
    if not modes:
        return True
    return isinstance(modes[0], ast.Constant) and re.fullmatch(r"[rwaxt+]+", str(modes[0].value)) is not None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_text_is_read_and_written_as_utf_8_everywhere(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and lacks_encoding(node)]
    assert not lines, f'{file.name}, lines {lines}: say encoding="utf-8"'


@pytest.mark.parametrize(
    "code, lacks",
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("open(file)", True),
    ]
    + [
        ("open(file, 'rb')", False),
        ("open(file, mode='w')", True),
        ("path.open('a+')", True),
        ("path.open('rb')", False),
    ]
    + [("Store.open(tokens, 'train')", False), ("open(file, encoding='utf-8')", False), ("path.open()", True)],
)
def test_what_lacks_an_encoding(code, lacks):
    assert lacks_encoding(ast.parse(code).body[0].value) == lacks
