"""The order of training: (seed, step) alone decides which sequences form the global batch of a step."""

from __future__ import annotations

import numpy as np

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.permutation import Permutation
from ds_distill.data.sources import check_weights
from ds_distill.utils.errors import UserError

_WINDOW = 64  # how many global batches are sorted by length together
_STREAM = 0x6F726465  # "orde": keeps these draws apart from every other use of the seed
_EPOCH, _FRACTION, _BATCHES = range(3)  # what a permutation is of


class EpochOrder:
    """The order in which each epoch sees the sequences of a dataset, the same for every rank.

    The entries of a step are computed when they are asked for, from those places of the epoch's permutation alone, so
    neither memory nor start-up time grows with the dataset.

    Attributes:
        entries: The number of entries of an epoch.
        steps_per_epoch: The number of global batches of an epoch; the incomplete last one is left out.
    """

    def __init__(
        self,
        store: TokenDataset,
        *,
        seed: int,
        global_batch_size: int,
        weights: list[float] | None = None,
        by_length: bool = False,
    ):
        """Define the order.

        Args:
            store: The dataset.
            seed: The seed of the run.
            global_batch_size: The number of entries of a step.
            weights: How often an epoch sees each source of the corpus: 2 means twice, with other masks; 0.5 means a
                random half.
            by_length: Whether a global batch holds sequences of similar length, so that little is padding. The entries
                of 64 steps are sorted by length together. Which ones these are, and the order of the 64 batches, is
                drawn anew each epoch.

        Raises:
            UserError: If the weights do not fit the sources, or a global batch exceeds the data.
        """
        self.store, self.seed, self.global_batch_size, self.by_length = store, seed, global_batch_size, by_length
        sizes = store.source_sizes()
        weights = list(weights or [1.0] * len(sizes))
        check_weights(weights, len(sizes))
        self._sizes = np.array(sizes, np.int64)
        counts = np.array([round(weight * size) for weight, size in zip(weights, sizes, strict=True)], np.int64)
        self._ends = np.cumsum(counts)
        self._before = self._ends - counts  # entries of the sources before
        self._first = np.cumsum(self._sizes) - self._sizes  # the number of a source's first sequence
        self._whole, self._rest = np.divmod(counts, np.maximum(self._sizes, 1))  # copies of all of a source, and more
        self.entries = int(self._ends[-1])
        self.steps_per_epoch = self.entries // global_batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"{store.path}: an epoch's {self.entries} sequences are fewer than one global batch of "
                f"{global_batch_size}; lower training.global_batch_size, or prepare more text"
            )
        self._window_size = _WINDOW if by_length else 1  # in global batches
        self._window: tuple[tuple[int, int], np.ndarray] = ((-1, -1), np.empty(0, np.int64))

    def __call__(self, step: int) -> np.ndarray:
        """Return the entries of the global batch of `step`: int64 [global_batch_size].

        An entry is a sequence's number, plus len(store) for each further copy of it.
        """
        if step < 0:
            raise ValueError(f"step {step}: steps count from 0")
        epoch, place = divmod(step, self.steps_per_epoch)
        window, within = divmod(place, self._window_size)
        # The tuple is replaced as a whole, because the prefetch thread and the main thread may both be here.
        cached, batches = self._window
        if cached != (epoch, window):
            batches = self._batches(epoch, window)
            self._window = ((epoch, window), batches)
        return batches[within]

    def _batches(self, epoch: int, window: int) -> np.ndarray:
        """Return the batches of a window: int64 [batches, global_batch_size]."""
        first = window * self._window_size
        count = min(self._window_size, self.steps_per_epoch - first)
        entries = self._entries(epoch, first, count)
        if not self.by_length:
            return entries.reshape(count, self.global_batch_size)
        by_length = np.argsort(self.store.lengths(entries % len(self.store)), kind="stable")
        order = Permutation(count, self._key(epoch, _BATCHES, window))(np.arange(count))
        return entries[by_length].reshape(count, self.global_batch_size)[order]

    def _entries(self, epoch: int, first: int, count: int) -> np.ndarray:
        """Return the entries of `count` batches from the first on, in the epoch's order before any sorting."""
        places = np.arange(first * self.global_batch_size, (first + count) * self.global_batch_size)
        numbers = Permutation(self.entries, self._key(epoch, _EPOCH))(places)
        source = np.searchsorted(self._ends, numbers, side="right")
        copy, within = np.divmod(numbers - self._before[source], self._sizes[source])
        for part in np.flatnonzero(self._rest):
            drawn = (source == part) & (copy == self._whole[part])
            fraction = Permutation(int(self._sizes[part]), self._key(epoch, _FRACTION, int(part)))
            within[drawn] = fraction(within[drawn])
        return copy * len(self.store) + self._first[source] + within

    def _key(self, epoch: int, kind: int, number: int = 0) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, _STREAM, epoch], spawn_key=(kind, number))
