"""Test the demo's text."""

import pytest

from ds_distill.demo.documentation import HELDOUT_SHARE, MIN_DOCSTRING, _read_prose, read_documentation


def sentence(number: int) -> str:
    """Return a paragraph of prose whose words depend on the number."""
    word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
    return f"This is the {word} of the paragraphs that are in a module, and it says what the {word} is for to a reader."


def write_package(folder, paragraphs, name="Widget"):
    """Write a package with one docstring of these paragraphs, which mention `name`."""
    folder.mkdir(parents=True)
    text = "\n\n".join(f"{paragraph}\nIt returns a {name} for {len(name)} of them." for paragraph in paragraphs)
    (folder / "module.py").write_text(f'"""{text}\n"""\n')


def test_docstrings_are_told_from_other_strings_and_code(tmp_path):
    prose = (
        "This is a paragraph of the kind that is found in a module, and it says what the module is for to the reader. "
        * 3
    )
    code = "x = {}\n" * 60
    path = tmp_path / "m.py"
    path.write_text(
        f'"""{prose}"""\ndata = """{prose} not a docstring"""\ndef f():\n    r"""{code}"""\n'
        '    """\n    Short.\n    """\n'
    )
    assert _read_prose(str(path)) == [[prose.strip()]]


def test_documentation_is_bounded_deterministic_and_without_repeats():
    progress = []
    first = read_documentation(300_000, progress=progress.append)
    assert first == read_documentation(300_000)
    assert first != read_documentation(300_000, seed=1)
    documents = first.train + first.heldout
    size = sum(len(document.encode()) for document in documents)
    assert 280_000 < size <= 300_000
    assert progress == sorted(progress) and progress[-1] > 0
    paragraphs = [paragraph for document in documents for paragraph in document.splitlines()]
    assert len(set(paragraphs)) == len(paragraphs) > 300
    held = sum(len(document.splitlines()) for document in first.heldout) / len(paragraphs)
    assert HELDOUT_SHARE / 2 < held < HELDOUT_SHARE * 2
    assert MIN_DOCSTRING == 200


@pytest.mark.parametrize("change", ["another package", "another order", "another name", "another wrapping"])
def test_a_paragraph_is_held_out_everywhere_or_nowhere(tmp_path, change):
    """A teacher that was trained on one machine has not read what is held out on another."""
    paragraphs = [sentence(number) for number in range(400)]
    write_package(tmp_path / "here" / "package", paragraphs)
    here = read_documentation(10**9, roots=[tmp_path / "here"])
    name, there = "Widget", list(paragraphs)
    if change == "another order":
        there = there[::-3] + [sentence(number) for number in range(400, 500)]
    elif change == "another name":
        name = "HTML5Parser"
    elif change == "another wrapping":
        there = [paragraph.replace(" that ", "\n    that ").replace(" a reader", "\ta reader") for paragraph in there]
    write_package(tmp_path / "there" / ("other" if change == "another package" else "package"), there, name)
    elsewhere = read_documentation(10**9, seed=5, roots=[tmp_path / "there"])

    def words(documents):
        return {line.split(" It returns ")[0] for document in documents for line in document.splitlines()}

    assert words(here.heldout) and words(elsewhere.heldout)
    assert not words(here.heldout) & words(elsewhere.train) and not words(here.train) & words(elsewhere.heldout)


def test_paragraphs_that_differ_in_names_alone_are_one(tmp_path):
    for number, name in enumerate(("Bert", "GPT2", "T5_base", "XLM")):
        write_package(tmp_path / "packages" / f"p{number}", [sentence(7) * 2], name)
    text = read_documentation(10**9, roots=[tmp_path / "packages"])
    assert len(text.train) + len(text.heldout) == 1
