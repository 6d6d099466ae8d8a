"""Test the embedded corpus."""

from ds_distill.data.docstrings import MIN_DOCSTRING, _read_prose, embedded_documents


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


def test_embedded_corpus_is_bounded_deterministic_and_without_repeats():
    progress = []
    first = embedded_documents(100_000, progress=progress.append)
    assert first == embedded_documents(100_000)
    assert first != embedded_documents(100_000, seed=1)
    assert 90_000 < sum(len(d.encode()) for d in first) <= 100_000
    assert progress == sorted(progress) and progress[-1] > 0
    assert min(map(len, first)) >= MIN_DOCSTRING
    assert len(set(first)) == len(first)
