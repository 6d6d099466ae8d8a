"""Test that a reader that stops early sees some of every input, and of every file of an input."""

import gzip
import os

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
    before = readers._OPENED
    readers._OPENED = opened
    try:
        items = list(readers._in_turn(iter([(number, i) for i in range(size)]) for number, size in enumerate(sizes)))
    finally:
        readers._OPENED = before
    assert sorted(items) == [(number, i) for number, size in enumerate(sizes) for i in range(size)]
    first = [number for number, _ in items[: sum(size > 0 for size in sizes[:opened])]]
    assert set(first) >= {number for number, size in enumerate(sizes[:opened]) if size}


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


def test_more_files_than_a_process_may_open(tmp_path):
    for number in range(200):
        write(tmp_path, f"{number:03}.txt", [f"{number} a", f"{number} b"])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    reading = documents_in_turn([str(tmp_path)])
    first = [next(reading) for _ in range(60)]
    assert len(os.listdir("/proc/self/fd")) - before <= readers._OPENED if before else True
    assert len(first) + len(list(reading)) == 400
