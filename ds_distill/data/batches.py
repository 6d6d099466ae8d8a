"""The order of training: which blocks form step k, whole and per rank, from (seed, step) alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ds_distill.data.masking import Masker
from ds_distill.data.store import TokenStore
from ds_distill.errors import UserError

HELDOUT_EPOCH = 2**31  # no training epoch: held-out masks never change, and none is a training block's
_STREAM = 0x6F726465  # "orde": keeps the permutation apart from every other use of the seed


@dataclass
class Batch:
    """input_ids [B, L] long; labels [B, L] long, -100 where unmasked; attention_mask [B, L] bool, None without padding."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        mask = self.attention_mask
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            None if mask is None else mask.to(device, non_blocking=True),
        )


def make_batch(store: TokenStore, masker: Masker, indices: np.ndarray, epoch: int) -> Batch:
    """The masked blocks `indices` [B] of `store`."""
    masked = [masker.mask(store.blocks[i], epoch=epoch, block=int(i)) for i in indices]
    lengths, width = store.lengths(indices), store.blocks.shape[1]
    padded = lengths.min() < width
    return Batch(
        torch.from_numpy(np.stack([ids for ids, _ in masked])),
        torch.from_numpy(np.stack([labels for _, labels in masked])),
        torch.from_numpy(np.arange(width) < lengths[:, None]) if padded else None,
    )


class BatchOrder:
    """Batches of one rank.  Step k's blocks are a slice of the epoch's global permutation, the same at any world size.

    A global batch is laid out micro-step by micro-step, in each rank by rank.  steps_per_epoch leaves the incomplete last
    global batch out; accumulation is the number of micro-batches a rank runs per step.  Raises UserError where the global
    batch cannot be cut evenly or exceeds the data.
    """

    def __init__(
        self, store: TokenStore, masker: Masker, *, seed: int, global_batch: int, micro_batch: int, rank: int, world_size: int
    ):
        if min(global_batch, micro_batch, world_size) < 1 or not 0 <= rank < world_size:
            raise UserError(f"global batch {global_batch}, micro-batch {micro_batch}, rank {rank} of {world_size}: "
                            "sizes must be at least 1, ranks count from 0")
        wave = micro_batch * world_size
        if global_batch % wave:
            below, above = global_batch // wave * wave, -(-global_batch // wave) * wave
            nearest = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"global batch = {global_batch}: not a multiple of micro-batch {micro_batch} × {world_size} ranks = {wave}; use {nearest}"
            )
        self.steps_per_epoch = len(store.blocks) // global_batch
        if not self.steps_per_epoch:
            raise UserError(f"{store.path}: {len(store.blocks)} blocks are fewer than one global batch of {global_batch}; "
                            "lower the global batch or prepare more text")
        self.store, self.masker, self.seed = store, masker, seed
        self.global_batch, self.micro_batch, self.rank, self.world_size = global_batch, micro_batch, rank, world_size
        self.accumulation = global_batch // wave
        self._permutation = (-1, np.empty(0, np.int64))

    def epoch(self, step: int) -> int:
        """The epoch, from 0, that step belongs to."""
        return step // self.steps_per_epoch

    def indices(self, step: int) -> np.ndarray:
        """The blocks of step's whole global batch: int64 [global_batch]."""
        if step < 0:
            raise ValueError(f"step {step}: steps count from 0")
        epoch, place = divmod(step, self.steps_per_epoch)
        # One tuple, replaced whole: the prefetch thread and the main thread may both be here.
        cached, permutation = self._permutation
        if cached != epoch:
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, _STREAM, epoch])))
            permutation = random.permutation(len(self.store.blocks))
            self._permutation = (epoch, permutation)
        return permutation[place * self.global_batch : (place + 1) * self.global_batch]

    def micro_batches(self, step: int) -> list[Batch]:
        """This rank's `accumulation` batches of step, each [micro_batch, L]."""
        mine = self.indices(step).reshape(self.accumulation, self.world_size, self.micro_batch)[:, self.rank]
        return [make_batch(self.store, self.masker, indices, self.epoch(step)) for indices in mine]

    def counts(self, step: int) -> tuple[int, int]:
        """(real tokens, masked tokens) of step's whole global batch: what the losses divide by, without asking other ranks."""
        indices = self.indices(step)
        # Masked tokens depend on how many separators a block holds, not on its mask: one look-up over the ids.
        masked = self.masker.masked_counts(self.store.blocks[indices])
        return int(self.store.lengths(indices).sum()), int(masked.sum())

    def prefetch(self, first_step: int, last_step: int) -> Iterator[tuple[int, list[Batch], tuple[int, int]]]:
        """(step, this rank's batches, counts) for first_step ≤ step < last_step, made ahead in one background thread.

        An exception of the thread is raised here, after the steps made before it.  Closing the iterator stops the thread.
        """
        made: queue.Queue = queue.Queue(maxsize=2)
        stop = threading.Event()

        def put(item: object) -> None:
            while not stop.is_set():
                try:
                    return made.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for step in range(first_step, last_step):
                    if stop.is_set():
                        return
                    put((step, self.micro_batches(step), self.counts(step)))
                put(None)
            except BaseException as error:  # whatever it is, the consumer must not wait for ever
                put(error)

        thread = threading.Thread(target=work, name="batch-prefetch", daemon=True)
        thread.start()
        try:
            while (item := made.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


def heldout_batches(store: TokenStore, masker: Masker, batch_size: int, max_blocks: int | None = None) -> Iterator[Batch]:
    """The first `max_blocks` blocks of the store in order, the last batch as short as it comes; the same masks every time."""
    count = len(store.blocks) if max_blocks is None else min(max_blocks, len(store.blocks))
    for start in range(0, count, batch_size):
        yield make_batch(store, masker, np.arange(start, min(start + batch_size, count)), HELDOUT_EPOCH)
