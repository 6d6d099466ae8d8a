"""Test the order of training: exact permutations that look random, of which any step is known by itself."""

import itertools
import math
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ds_distill.data.order import EpochOrder
from ds_distill.data.permutation import Permutation


class Sequences:
    """The part of a TokenDataset that an order uses."""

    path = Path("tokens")

    def __init__(self, *sizes: int, lengths: np.ndarray | None = None):
        self.sizes, self._lengths, self.looked_up = sizes, lengths, 0

    def __len__(self) -> int:
        return sum(self.sizes)

    def source_sizes(self) -> list[int]:
        return list(self.sizes)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        self.looked_up += len(indices)
        return self._lengths[indices]


def key(*numbers: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(numbers)


def deviation(observed: np.ndarray, expected: np.ndarray | float, freedom: int) -> float:
    """Return by how many standard deviations the chi-square statistic is larger than what chance makes it."""
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    return (chi_square - freedom) / math.sqrt(2 * freedom)


@pytest.mark.promise("Each sequence comes exactly once per epoch, in an order that takes no memory at any size")
def test_each_number_comes_exactly_once_and_any_entry_is_known_by_itself():
    for size in [*range(1, 130), 997, 4096, 65537]:
        permutation = Permutation(size, key(size))
        entries = permutation(np.arange(size))
        assert entries.dtype == np.int64 and (np.sort(entries) == np.arange(size)).all(), size
        some = np.array([[0, size - 1], [size // 2, size // 3]])
        assert (permutation(some) == entries[some]).all()
    assert (Permutation(997, key(1))(np.arange(997)) != Permutation(997, key(2))(np.arange(997))).any()
    with pytest.raises(ValueError, match="permutation of 0"):
        Permutation(0, key(1))


def test_all_permutations_of_few_numbers_are_equally_likely():
    seen = Counter(tuple(Permutation(5, key(number))(np.arange(5)).tolist()) for number in range(2400))
    observed = np.array([seen[order] for order in itertools.permutations(range(5))])
    assert abs(deviation(observed, 2400 / 120, 119)) < 4


def test_each_place_of_a_permutation_gets_each_number():
    tenths = np.zeros((10, 10))
    for number in range(300):
        np.add.at(tenths, (np.arange(1000) // 100, Permutation(1000, key(7, number))(np.arange(1000)) // 100), 1)
    assert abs(deviation(tenths, 300 * 1000 / 100, 81)) < 4


def test_neighbors_of_a_permutation_have_nothing_to_do_with_each_other():
    size = 200_000
    entries = Permutation(size, key(3))(np.arange(size))
    for distance in (1, 2, 447, 448, 1000):  # 448 is the larger base of the network's digits
        apart = (entries[distance:] - entries[:-distance]) % size
        assert abs(deviation(np.bincount(apart * 100 // size, minlength=100), len(apart) / 100, 99)) < 4, distance
        pairs = np.zeros((10, 10))
        np.add.at(pairs, (entries[distance:] * 10 // size, entries[:-distance] * 10 // size), 1)
        assert abs(deviation(pairs, len(apart) / 100, 81)) < 4, distance


def test_epochs_and_seeds_have_nothing_to_do_with_each_other():
    size = 100_000
    orders = [
        np.concatenate([order(step) for step in range(100 * epoch, 100 * epoch + 100)])
        for order, epoch in itertools.product(
            (EpochOrder(Sequences(size), seed=seed, global_batch_size=1000) for seed in (0, 1)), (0, 1, 2)
        )
    ]
    for one, two in itertools.combinations(orders, 2):
        assert abs(np.corrcoef(one, two)[0, 1]) < 4 / math.sqrt(size)
        assert (one == two).sum() < 10  # one is expected


def test_batches_are_a_random_mixture_of_the_sources():
    sizes = np.array([30_000, 5_000, 65_000])
    order = EpochOrder(Sequences(*sizes), seed=1, global_batch_size=100)
    observed = np.array([np.bincount(np.searchsorted(np.cumsum(sizes), order(step), "right")) for step in range(1000)])
    # the variance of a multinomial distribution; without replacement it is smaller by one part in a thousand
    assert abs(deviation(observed, 100 * sizes / sizes.sum(), 2 * 1000)) < 4


def test_a_weight_below_one_takes_another_random_part_in_each_epoch():
    order = EpochOrder(Sequences(400, 2000), seed=1, global_batch_size=100, weights=[1.5, 0.25])
    assert order.entries == 1100 and order.steps_per_epoch == 11
    parts = []
    for epoch in range(40):
        entries = np.concatenate([order(step) for step in range(11 * epoch, 11 * epoch + 11)])
        assert len(set(entries)) == 1100
        first = np.bincount(entries[entries % 2400 < 400] % 2400, minlength=400)
        assert first.min() == 1 and (first == 2).sum() == 200  # half of the source comes twice
        parts.append(np.bincount(entries[entries % 2400 >= 400] % 2400 - 400, minlength=2000))
    # drawn 40 times with probability 1/4: the variance is 3/4 of the expectation
    assert abs(deviation(np.sum(parts, 0) / math.sqrt(0.75), 10 / math.sqrt(0.75), 2000)) < 4


@pytest.mark.promise("Each sequence comes exactly once per epoch, in an order that takes no memory at any size")
def test_neither_time_nor_memory_grows_with_the_dataset():
    """A permutation of two billion sequences would take 16 GB."""
    tracemalloc.start()
    order = EpochOrder(Sequences(10**9, 10**9), seed=1, global_batch_size=512, weights=[1, 0.5])
    entries = np.concatenate([order(order.steps_per_epoch * epoch - 1) for epoch in (1, 2)])
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert len(set(entries)) == 1024 and entries.max() < 2 * 10**9


def test_a_step_of_similar_lengths_is_known_from_one_window():
    random = np.random.default_rng(0)
    lengths = random.integers(12, 129, 20_030)
    order = EpochOrder(Sequences(20_030, lengths=lengths), seed=1, global_batch_size=20, by_length=True)
    steps = [order(step) for step in range(order.steps_per_epoch)]
    assert len(np.unique(steps)) == 20 * order.steps_per_epoch == 20_020
    for step in (0, 63, 64, 700, 1000):
        store = Sequences(20_030, lengths=lengths)
        assert (EpochOrder(store, seed=1, global_batch_size=20, by_length=True)(step) == steps[step]).all()
        assert store.looked_up == 20 * (64 if step < 960 else 41)
    spread = [lengths[batch].max() - lengths[batch].min() for batch in steps]
    assert np.mean(spread) < 3  # of 116, in windows of 64 batches
    means = np.array([lengths[batch].mean() for batch in steps])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 4 / math.sqrt(len(means))  # batches do not come sorted
    # each window is a sample of all lengths
    assert np.std([means[start : start + 64].mean() for start in range(0, 960, 64)]) < 4 * lengths.std() / math.sqrt(
        1280
    )
