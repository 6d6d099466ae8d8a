"""The division of a global batch among ranks and micro-batches, of any batch among any number of ranks.

The losses are sums over the counts of the global batch, so unequal shares are exact. DeepSpeed needs as
many forward and backward passes on every rank, and a compiled step as many rows in each. So every rank
runs the same number of micro-batches of the same number of rows, and rows that no loss counts fill up
those that have fewer sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ds_distill.data.batch import BatchArrays, compute_cu_seqlens
from ds_distill.data.masking import IGNORE_INDEX


@dataclass(frozen=True)
class Shares:
    """Which sequences of a global batch each rank gets in each of its micro-batches.

    The sequences lie micro-step by micro-step, and within each micro-step rank by rank. The sizes of
    any two parts differ by at most one.

    Args:
        global_batch_size: Sequences per optimizer step.
        micro_batch_size: The most sequences of a micro-batch.
        world_size: The number of ranks.
    """

    global_batch_size: int
    micro_batch_size: int
    world_size: int

    @property
    def accumulation(self) -> int:
        """The micro-batches that each rank runs per step."""
        return -(-self.global_batch_size // (self.micro_batch_size * self.world_size))

    @property
    def rows(self) -> int:
        """The rows of every micro-batch, those that fill it up included."""
        return -(-self.global_batch_size // (self.accumulation * self.world_size))

    @property
    def filled_fraction(self) -> float:
        """The fraction of the computed rows that no loss counts."""
        return 1 - self.global_batch_size / (self.rows * self.accumulation * self.world_size)

    def part(self, micro: int, rank: int) -> slice:
        """Return the sequences of the global batch that `rank` gets in its micro-batch number `micro`, maybe none."""
        parts, number = self.accumulation * self.world_size, micro * self.world_size + rank
        return slice(number * self.global_batch_size // parts, (number + 1) * self.global_batch_size // parts)


def fill_up(batch: BatchArrays, sequences: int, rows: int) -> BatchArrays:
    """Return a batch of `rows` rows of which the losses count the first `sequences`.

    The others are copies of the batch's rows without labels. To the models they are like any row, so
    no attention over nothing arises, and their gradient is exactly zero.

    Args:
        batch: A batch of at least one row.
        sequences: How many of its rows count; 0 for a micro-batch that has no sequence of its own.
        rows: The rows of the result.
    """
    if sequences == rows:
        return batch
    chosen = np.arange(rows) % len(batch.input_ids)
    counts = (np.arange(rows) < sequences)[:, None]
    token_mask = None if batch.token_mask is None else batch.token_mask[chosen]
    document_ids = None if batch.document_ids is None else batch.document_ids[chosen]
    return BatchArrays(
        input_ids=batch.input_ids[chosen],
        labels=np.where(counts, batch.labels[chosen], IGNORE_INDEX),
        token_mask=token_mask,
        document_ids=document_ids,
        cu_seqlens=None if document_ids is None else compute_cu_seqlens(document_ids),
        loss_mask=np.repeat(counts, batch.input_ids.shape[1], 1) if token_mask is None else counts & token_mask,
        masked_rows=None if batch.masked_rows is None else batch.masked_rows[batch.masked_rows < sequences],
    )
