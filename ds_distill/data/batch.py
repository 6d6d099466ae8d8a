"""One batch: the inputs of a model and the labels that it must predict.

A batch is made of arrays, and then given to torch. Only the second part imports torch, so that a process that makes
batches does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.masking import IGNORE_INDEX, Masker

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TokenCounts(NamedTuple):
    """The tokens of a global batch.

    Attributes:
        real: The real tokens, which are no padding.
        masked: The masked tokens.
        clean: The real tokens of sequences that are not masked at all.
    """

    real: int
    masked: int
    clean: int = 0

    @property
    def of_masked_sequences(self) -> int:
        """The real tokens of the sequences that are masked, which are those that a vocabulary loss may look at."""
        return self.real - self.clean


class BatchArrays(NamedTuple):
    """The fields of a Batch as arrays of the same names, shapes and types, except shows_mask."""

    input_ids: np.ndarray
    labels: np.ndarray
    token_mask: np.ndarray | None
    document_ids: np.ndarray | None
    cu_seqlens: np.ndarray | None
    loss_mask: np.ndarray | None = None
    masked_rows: np.ndarray | None = None


@dataclass
class Batch:
    """One batch of sequences.

    Args:
        input_ids: [B, L] long.
        labels: [B, L] long, -100 where unmasked.
        token_mask: [B, L] bool, false on padding; None without padding.
        document_ids: [B, L] long, where each document of a packed block is a context of its own;
            else None.
        cu_seqlens: The documents' boundaries in the same case, see `compute_cu_seqlens`; else None.
        shows_mask: [B, L] bool, true where input_ids is [MASK], of held-out batches; else None.
        loss_mask: [B, L] bool, true on the real tokens that the losses count, where some rows only fill
            up the batch; else None, and the losses count all real tokens.
        masked_rows: [n] long, the rows whose sequences are masked and which the losses count, where some sequences
            may be clean; else None, and the vocabulary losses look at all rows.
    """

    input_ids: Tensor
    labels: Tensor
    token_mask: Tensor | None
    document_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    shows_mask: Tensor | None = None
    loss_mask: Tensor | None = None
    masked_rows: Tensor | None = None

    @classmethod
    def from_arrays(cls, arrays: BatchArrays) -> Batch:
        """Return the batch that shares the arrays' memory."""
        import torch

        tensors: dict[str, Any] = {
            name: None if array is None else torch.from_numpy(array) for name, array in arrays._asdict().items()
        }
        return cls(**tensors)

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`.

        From pinned memory the copy does not make the caller wait.
        """
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Return the same batch in memory that a GPU can read by itself."""
        return self._each(lambda x: x.pin_memory())

    def copied(self) -> Batch:
        """Return the same batch in memory of its own."""
        return self._each(lambda x: x.clone())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: Iterator[Any] = (None if x is None else change(x) for x in vars(self).values())
        return Batch(*changed)

    @property
    def attention_mask(self) -> Tensor | None:
        """The mask for a model: token_mask [B, L], or [B, 1, L, L] bool, true where a query sees a key."""
        if self.document_ids is None:
            return self.token_mask
        sees = self.document_ids[:, None, :, None] == self.document_ids[:, None, None, :]
        if self.token_mask is not None:
            sees = sees & self.token_mask[:, None, None, :]
            # Padding attends to [CLS], because a softmax over nothing is NaN.
            sees[..., 0] |= ~self.token_mask[:, None, :]
        return sees


@dataclass(frozen=True)
class CollateSpec:
    """The rules that turn sequences into a batch.

    Args:
        pad_id: The id of padding.
        separator: The id that ends a document, where documents are contexts of their own; else
            None.
    """

    pad_id: int
    separator: int | None = None


def collate(
    store: TokenDataset,
    masker: Masker,
    entries: np.ndarray,
    epoch: int,
    spec: CollateSpec,
    clean: np.ndarray | None = None,
) -> BatchArrays:
    """Return the sequences `entries` [B], masked and padded to the longest.

    An entry is a sequence's number, plus len(store) for each further copy of it.

    Args:
        store: The sequences.
        masker: What masks them.
        entries: int64 [B].
        epoch: The epoch, which decides the masks.
        spec: The rules of a batch.
        clean: [B] bool, the sequences that are not masked; None where all are masked.

    Raises:
        UserError: A file of the store is damaged.
    """
    numbers = entries % len(store)
    looked_at = np.ones(len(entries), bool) if clean is None else ~clean
    masked = []
    for number, entry, mask in zip(numbers, entries, looked_at, strict=True):
        ids = store.sequence(int(number))
        unmasked = ids.astype(np.int64), np.full(len(ids), IGNORE_INDEX, np.int64)
        masked.append(masker.mask(ids, epoch=epoch, block=int(entry)) if mask else unmasked)
    lengths = np.array([len(ids) for ids, _ in masked])
    width = int(lengths.max())
    input_ids, labels = (
        np.full((len(masked), width), spec.pad_id, np.int64),
        np.full((len(masked), width), IGNORE_INDEX, np.int64),
    )
    document_ids = None if spec.separator is None else np.full((len(masked), width), -1, np.int64)
    for row, (ids, row_labels) in enumerate(masked):
        input_ids[row, : len(ids)], labels[row, : len(ids)] = ids, row_labels
        if document_ids is not None:
            ends = ids == spec.separator  # The separator is never masked and never part of a text.
            document_ids[row, : len(ids)] = np.cumsum(ends) - ends
    counted = masker.masked_counts(store.maskable(numbers))
    store.check_maskable(numbers, (labels != IGNORE_INDEX).sum(1), np.where(looked_at, counted, 0))
    padded = lengths.min() < width
    return BatchArrays(
        input_ids,
        labels,
        np.arange(width) < lengths[:, None] if padded else None,
        document_ids,
        None if document_ids is None else compute_cu_seqlens(document_ids),
        masked_rows=None if clean is None else np.flatnonzero(looked_at),
    )


def compute_cu_seqlens(document_ids: np.ndarray) -> np.ndarray:
    """Return where each document of [B, L] ids begins in the flattened batch, as int32.

    This is the format that variable-length attention takes. Padding counts as a document. B · L
    ends the array and fills it up to a power of two, at least 64, so that there are few lengths and
    little is recompiled.
    """
    is_first = np.ones(document_ids.shape, bool)
    is_first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = np.flatnonzero(is_first)
    out = np.full(max(64, 1 << len(starts).bit_length()), document_ids.size, np.int32)
    out[: len(starts)] = starts
    return out
