"""Where documents come from."""

import gzip

import pytest

from ds_distill.data.corpus import MIN_DOCSTRING, _prose_of_file, documents, embedded_documents
from ds_distill.errors import UserError


def test_blank_lines_separate_documents_and_lines_are_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\n  \n\nthree \xff\r\n\r\nfour")
    assert list(documents([str(tmp_path / "a.txt")])) == ["one\ntwo", "three \ufffd", "four"]


def test_folders_globs_and_gzip(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "notes.md").write_text("m")
    with gzip.open(tmp_path / "deep" / "c.txt.gz", "wt") as file:
        file.write("c1\n\nc2\n")
    assert list(documents([str(tmp_path)])) == ["b", "c1", "c2"]
    assert list(documents([str(tmp_path / "*.md"), str(tmp_path / "b.txt")])) == ["m", "b"]


def test_what_is_missing_is_named_at_the_call(tmp_path):
    for given in (tmp_path / "none.txt", tmp_path / "*.nothing", tmp_path):
        with pytest.raises(UserError, match=str(tmp_path)):
            documents([str(given)])
    with pytest.raises(UserError, match="name at least one"):
        documents([])


def test_broken_gzip_is_named(tmp_path):
    path = tmp_path / "broken.txt.gz"
    path.write_bytes(gzip.compress(b"words " * 1000)[:30])
    with pytest.raises(UserError, match="broken.txt.gz"):
        list(documents([str(path)]))


def test_docstrings_are_told_from_other_strings_and_code(tmp_path):
    prose = "This is a paragraph of the kind that is found in a module, and it says what the module is for to the reader. " * 3
    code = "x = {}\n" * 60
    path = tmp_path / "m.py"
    path.write_text(f'"""{prose}"""\ndata = """{prose} not a docstring"""\ndef f():\n    r"""{code}"""\n    """\n    Short.\n    """\n')
    assert _prose_of_file(str(path)) == [[prose.strip()]]


def test_embedded_corpus_is_bounded_deterministic_and_without_repeats():
    progress = []
    first = embedded_documents(100_000, progress=progress.append)
    assert first == embedded_documents(100_000)
    assert first != embedded_documents(100_000, seed=1)
    assert 90_000 < sum(len(d.encode()) for d in first) <= 100_000
    assert progress == sorted(progress) and progress[-1] > 0
    assert min(map(len, first)) >= MIN_DOCSTRING
    assert len(set(first)) == len(first)
