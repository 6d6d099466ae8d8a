"""The choice of the sequences that are not masked: a pure function of (seed, epoch, entry)."""

from __future__ import annotations

import numpy as np

from ds_distill.data.permutation import mix

_STREAM = 0x636C6561  # "clea": keeps these draws apart from every other use of the seed


class CleanSequences:
    """The sequences that an epoch shows as they are, without masks.

    Each sequence is clean with the same probability in each epoch, whatever became of it in other epochs and of other
    sequences in this one. Nothing but the seed, the epoch and the sequence decides it, so it is the same for any number
    of ranks, any accumulation and any global batch.

    Args:
        seed: The seed of the run.
        fraction: The probability, from 0 to 1.
    """

    def __init__(self, seed: int, fraction: float):
        if not 0 <= fraction <= 1:
            raise ValueError(f"a fraction of {fraction} of the sequences")
        self.seed, self.fraction = seed, fraction

    def __call__(self, epoch: int, entries: np.ndarray) -> np.ndarray:
        """Return which of an epoch's entries (see `data.batch.collate`) are clean: bool, of the same shape."""
        first, second = np.random.SeedSequence([self.seed, _STREAM, epoch]).generate_state(2, np.uint64)
        bits = mix(mix(np.asarray(entries).astype(np.uint64) + first) + second)
        # the upper 53 bits, as many as a float64 holds: below 1 always, so that a fraction of 1 is all sequences
        return (bits >> np.uint64(11)) * 2.0**-53 < self.fraction
