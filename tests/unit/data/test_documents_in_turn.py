"""Test that a reader that stops early sees some of every input, and of every file of an input."""

import gzip
import os
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.data import readers, sources
from ds_distill.data.readers import documents, documents_in_turn


def write(folder, name, texts):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n\n".join(texts))
    return str(folder / name)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=24), st.integers(1, 20))
def test_each_item_comes_once_and_every_open_iterator_has_its_turn(sizes, opened):
    iterators = [iter([(number, i) for i in range(size)]) for number, size in enumerate(sizes)]
    items = list(readers._in_turn(iterators, opened))
    assert sorted(items) == [(number, i) for number, size in enumerate(sizes) for i in range(size)]
    if opened >= len(sizes):
        filled = [number for number, size in enumerate(sizes) if size]
        assert [number for number, _ in items[: len(filled)]] == filled
    elif all(sizes):
        first = [number for number, _ in items[:opened]]
        assert len(set(first)) == opened and max(first) >= len(sizes) - 1 - len(sizes) // opened, "spread over all"


def test_the_first_of_each_come_first(tmp_path, monkeypatch):
    a = write(tmp_path, "a.txt", [f"a {i}" for i in range(9)])
    for name in "bcd":
        write(tmp_path, f"folder/{name}.txt", [f"{name} {i}" for i in range(3)])
    with gzip.open(tmp_path / "e.txt.gz", "wt") as file:
        file.write("e 0")
    inputs = [a, str(tmp_path / "folder"), str(tmp_path / "e.txt.gz")]
    found = list(documents_in_turn(inputs))
    assert [text for _, text in found[:7]] == ["a 0", "b 0", "e 0", "a 1", "c 0", "a 2", "d 0"]
    assert sorted(text for _, text in found) == sorted(documents(inputs))
    assert all(number == {"a": 0, "e": 2}.get(text[0], 1) for number, text in found)
    monkeypatch.setattr(sources, "PIECE_BYTES", 12)
    texts = [text for _, text in documents_in_turn([a])]
    assert texts[:3] != ["a 0", "a 1", "a 2"] and sorted(texts) == sorted(documents([a])), "the middle of a large file"


def test_a_large_file_does_not_hide_a_small_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_BYTES", 30)
    write(tmp_path, "folder/big.txt", [f"big {i}" for i in range(400)])
    write(tmp_path, "folder/small.txt", ["small 0"])
    found = [text for _, text in documents_in_turn([str(tmp_path / "folder")])]
    assert "small 0" in found[:3] and len(found) == 401


def test_texts_beyond_those_that_are_open_are_read_too(tmp_path):
    files = [write(tmp_path, f"{number:03}.txt", [f"{number} {i}" for i in range(3)]) for number in range(100)]
    for inputs, most in ((files, readers._INPUTS), ([str(tmp_path)], readers._FILES)):
        first = {int(text.split()[0]) for _, text in islice(documents_in_turn(inputs), 64)}
        assert len(first) >= most and max(first) > 80
        assert len(list(documents_in_turn(inputs))) == 300


def test_more_files_than_a_process_may_open(tmp_path):
    for number in range(200):
        write(tmp_path, f"{number:03}.txt", [f"{number} a", f"{number} b"])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    reading = documents_in_turn([str(tmp_path)])
    first = [next(reading) for _ in range(60)]
    assert len(os.listdir("/proc/self/fd")) - before <= readers._FILES if before else True
    assert len(first) + len(list(reading)) == 400
