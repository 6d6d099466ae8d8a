"""Test what finds documents that occur more than once."""

import tracemalloc

import numpy as np
import pytest

from ds_distill.data import duplicates
from ds_distill.data.document_hashes import HASH
from ds_distill.data.duplicates import DuplicateCounter


def hashes(numbers):
    """Return a hash for each number, equal for equal ones, with alike halves for some that differ."""
    numbers = np.asarray(numbers, np.uint64)
    rows = np.empty(len(numbers), HASH)
    rows["high"] = (numbers // np.uint64(3)) * np.uint64(0x9E3779B97F4A7C15)
    rows["low"] = numbers % np.uint64(3)
    return rows


@pytest.mark.parametrize("waiting", [1, 7, 10**6])
def test_duplicates_are_counted_whatever_fits_in_memory(tmp_path, monkeypatch, waiting):
    monkeypatch.setattr(duplicates, "WAITING", waiting)
    random = np.random.default_rng(0)
    pieces = [random.integers(0, 300, size) for size in (0, 100, 1, 400)]
    for _ in range(2):  # a call that is interrupted leaves its files
        counter = DuplicateCounter(tmp_path / "hashes")
        for piece in pieces:
            counter.add(hashes(piece))
    assert counter.count() == 501 - len(set(np.concatenate(pieces).tolist()))
    assert not (tmp_path / "hashes").exists()
    assert DuplicateCounter(tmp_path / "none").count() == 0


def test_counting_duplicates_takes_memory_for_a_part_of_the_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "WAITING", 1 << 16)
    counter, piece, pieces = DuplicateCounter(tmp_path / "hashes"), 1 << 13, 256
    tracemalloc.start()
    for number in range(pieces):
        counter.add(hashes(np.arange(number * piece, (number + 1) * piece)))
    assert counter.count() == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * piece * pieces * HASH.itemsize


@pytest.mark.parametrize("waiting", [1, 50, 10**6])
def test_later_copies_are_all_but_the_first_in_the_order_of_the_corpus(tmp_path, monkeypatch, waiting):
    monkeypatch.setattr(duplicates, "WAITING", waiting)
    random = np.random.default_rng(0)
    pieces = [random.integers(0, 300, size) for size in (0, 100, 1, 400, 3)]
    paths = [tmp_path / f"piece-{number:05d}.npy" for number in range(len(pieces))]
    seen, expected = set(), []
    for path, piece in zip(paths, pieces, strict=True):
        np.save(path, hashes(piece))
        expected.append([number for number, value in enumerate(piece.tolist()) if value in seen or seen.add(value)])
    for _ in range(2):  # the second call, of another host, finds the work done
        duplicates.write_later_copies(paths, tmp_path / "copies")
    files = [tmp_path / "copies" / path.name for path in paths]
    assert [np.load(file).tolist() if file.is_file() else [] for file in files] == expected
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir()) == ["copies"]
