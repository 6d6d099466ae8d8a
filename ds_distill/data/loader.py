"""The batches of a rank: its share of the global batch of each step, masked and padded."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator

import numpy as np

from ds_distill.data.batch import Batch, BatchArrays, CollateSpec, TokenCounts, collate
from ds_distill.data.clean import CleanSequences
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.masking import Masker
from ds_distill.data.order import EpochOrder
from ds_distill.data.prefetch_process import steps_from_process
from ds_distill.data.prefetch_thread import steps_from_thread
from ds_distill.data.shares import Shares, fill_up
from ds_distill.utils.errors import UserError

# This is no training epoch, so held-out masks never change, and none equals a training block's.
HELDOUT_EPOCH = 2**31


class BatchLoader:
    """The batches of one rank.

    The sequences of step k are a slice of the epoch's global order, which is the same at any world
    size. `Shares` divides a global batch among ranks and micro-batches.

    `steps_per_epoch` leaves out the incomplete last global batch. `accumulation` is the number of
    micro-batches that a rank runs per step.

    Args:
        weights: As of EpochOrder.
        by_length: As of EpochOrder.
        document_masking: Whether the documents of a packed block cannot see each other.
        clean_fraction: The share of the sequences that are not masked, others in each epoch.

    Raises:
        UserError: If the global batch exceeds the data, or if the weights do not fit the sources.
    """

    def __init__(
        self,
        store: TokenDataset,
        masker: Masker,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        weights: list[float] | None = None,
        by_length: bool = False,
        document_masking: bool = False,
        clean_fraction: float = 0.0,
    ):
        if min(global_batch_size, micro_batch_size, world_size) < 1 or not 0 <= rank < world_size:
            raise UserError(
                f"training.global_batch_size = {global_batch_size}, micro_batch_size = {micro_batch_size}, rank {rank} "
                f"of {world_size}: sizes must be at least 1, and ranks count from 0"
            )
        self.order = EpochOrder(
            store, seed=seed, global_batch_size=global_batch_size, weights=weights, by_length=by_length
        )
        self.steps_per_epoch = self.order.steps_per_epoch
        self.store, self.masker = store, masker
        self.clean = CleanSequences(seed, clean_fraction) if clean_fraction else None
        self.collate_spec = CollateSpec(
            store.manifest["pad_id"], store.manifest["sep_id"] if document_masking else None
        )
        self.seconds_waited = 0.0
        self.global_batch_size, self.rank, self.world_size = global_batch_size, rank, world_size
        self.shares = Shares(global_batch_size, micro_batch_size, world_size)
        self.accumulation = self.shares.accumulation

    def epoch(self, step: int) -> int:
        """Return the epoch, counted from 0, that `step` belongs to."""
        return step // self.steps_per_epoch

    def get_indices(self, step: int) -> np.ndarray:
        """Return the entries (see `collate`) of the whole global batch of `step`: int64 [global_batch_size]."""
        return self.order(step)

    def rank_entries(self, step: int) -> list[np.ndarray]:
        """Return the entries of each of this rank's micro-batches of `step`; some may have none."""
        entries = self.get_indices(step)
        return [entries[self.shares.part(micro, self.rank)] for micro in range(self.accumulation)]

    def micro_batches(self, step: int) -> list[Batch]:
        """Return this rank's `accumulation` batches of `step`, each [shares.rows, L]."""
        return [Batch.from_arrays(arrays) for arrays in self.micro_arrays(step)]

    def micro_arrays(self, step: int) -> list[BatchArrays]:
        """Return what `micro_batches` does, as arrays."""
        batches, epoch = [], self.epoch(step)
        for entries in self.rank_entries(step):
            shown = entries if len(entries) else self.get_indices(step)[:1]
            clean = None if self.clean is None else self.clean(epoch, shown)
            arrays = collate(self.store, self.masker, shown, epoch, self.collate_spec, clean)
            batches.append(fill_up(arrays, len(entries), self.shares.rows))
        return batches

    def alone(self, micro_batch_size: int) -> BatchLoader:
        """Return a loader of the same sequences whose micro-batches are those of a lone rank."""
        other = copy.copy(self)
        other.rank, other.world_size = 0, 1
        other.shares = Shares(self.global_batch_size, micro_batch_size, 1)
        other.accumulation = other.shares.accumulation
        return other

    def counts(self, step: int) -> TokenCounts:
        """Return the counts of the whole global batch of `step`.

        The losses are divided by these counts, which need no communication with other ranks.
        """
        entries = self.get_indices(step)
        sequences = entries % len(self.store)
        lengths, masked = self.store.lengths(sequences), self.masker.masked_counts(self.store.maskable(sequences))
        clean = np.zeros(len(entries), bool) if self.clean is None else self.clean(self.epoch(step), entries)
        return TokenCounts(int(lengths.sum()), int(masked[~clean].sum()), int(lengths[clean].sum()))

    def prefetch(
        self, first_step: int, last_step: int, *, pin: bool = False, process: bool = False
    ) -> Iterator[tuple[int, list[Batch], TokenCounts]]:
        """Yield (step, this rank's batches, counts) for first_step ≤ step < last_step.

        A thread or a process makes the batches ahead of time, and both make the same. `seconds_waited` grows by the
        time that the caller had to wait. An exception there is raised here, after the steps that were made before it.
        Closing the iterator stops the thread or process.

        Args:
            first_step: The first step to make.
            last_step: The step to stop before.
            pin: Whether to pin the batches' memory, for a GPU.
            process: Whether a process makes the batches. A thread starts at once, but takes turns with the caller at
                Python's interpreter lock, so that the kernels of a GPU are launched late.
        """
        produce = steps_from_process if process else steps_from_thread
        with contextlib.closing(produce(self, first_step, last_step, pin)) as steps:
            while True:
                began = time.perf_counter()
                step = next(steps, None)
                self.seconds_waited += time.perf_counter() - began
                if step is None:
                    return
                yield step


def heldout_batches(
    store: TokenDataset,
    masker: Masker,
    batch_size: int,
    max_sequences: int | None = None,
    document_masking: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield a rank's share of the batches of `max_sequences` sequences that are spread evenly over the store.

    The sequences and their masks are the same every time, and so are the batches, whatever the number of
    ranks, which take turns. The last batch may be shorter. Where the ranks' numbers of batches would
    differ, some get a last one without labels, since ZeRO-3 needs equal numbers of calls.
    """
    count = len(store) if max_sequences is None else min(max_sequences, len(store))
    spec = CollateSpec(store.manifest["pad_id"], store.manifest["sep_id"] if document_masking else None)
    chosen = np.arange(count) * len(store) // max(count, 1)
    batches = -(-count // batch_size)
    for number in range(rank, -(-batches // world_size) * world_size, world_size):
        entries = chosen[number * batch_size : (number + 1) * batch_size]
        arrays = collate(store, masker, entries if len(entries) else chosen[:1], HELDOUT_EPOCH, spec)
        batch = Batch.from_arrays(arrays if len(entries) else fill_up(arrays, 0, 1))
        batch.shows_mask = batch.input_ids == masker.mask_id
        yield batch
