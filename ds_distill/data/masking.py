"""Which tokens the student must guess: a pure function of (seed, epoch, block)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ds_distill.data.whole_words import Words, choose_words, divided

IGNORE_INDEX = -100  # the label that cross-entropy skips
_STREAM = 0x6D61736B  # "mask": keeps these draws apart from every other use of the seed


def masked_count(n: int, probability: float = 0.15) -> int:
    """How many of n maskable tokens a block masks: exactly this many, so that counts need no look at the masks."""
    return round(probability * n)


class Masker:
    """Masks 15 % of a sequence's tokens, rare ones rather, 80 % as [MASK], 10 % as a random token, 10 % kept.

    token_counts: [V] occurrences in the training text.  special_ids (padding among them) are never masked and never drawn.
    words: where words begin; they are then masked whole, each with the same chance, but for its rarity: the geometric mean of its pieces'.
    Source: Sanh et al. 2019; p ∝ count^-0.7 from their code, after XLM (Lample & Conneau 2019); whole words as in BERT's later release.
    """

    def __init__(
        self,
        token_counts: np.ndarray,
        special_ids: Iterable[int],
        mask_id: int,
        vocab_size: int,
        seed: int,
        probability: float = 0.15,
        smoothing: float = 0.7,
        words: Words | None = None,
    ):
        if len(token_counts) != vocab_size:
            raise ValueError(f"{len(token_counts)} token counts for a vocabulary of {vocab_size}")
        self.mask_id, self.seed, self.probability, self.words = mask_id, seed, probability, words
        self.maskable = np.ones(vocab_size, bool)
        self.maskable[list(special_ids)] = False
        self._ordinary = np.flatnonzero(self.maskable)
        self._log_weight = -smoothing * np.log(np.maximum(token_counts, 1))
        self._inverse_weight = np.maximum(token_counts, 1).astype(np.float64) ** smoothing

    def mask(self, ids: np.ndarray, *, epoch: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """ids [L] → (input_ids int64 [L], labels int64 [L], -100 where unmasked)."""
        input_ids = ids.astype(np.int64)
        labels = np.full(len(input_ids), IGNORE_INDEX, np.int64)
        positions = np.flatnonzero(self.maskable[input_ids])
        count = masked_count(len(positions), self.probability)
        if count == 0:
            return input_ids, labels
        # Block and epoch sit in the counter's upper half, which drawing never reaches: every pair has a stream of its own.
        random = np.random.Generator(np.random.Philox(key=[self.seed, _STREAM], counter=[0, 0, block, epoch]))
        uniform = random.random(len(positions) + 2 * count)
        if self.words is None:
            # The k smallest Exp(1)/weight are a draw without replacement with p ∝ weight: Gumbel top-k without the logarithm.
            keys = -np.log1p(-uniform[: len(positions)]) * self._inverse_weight[input_ids[positions]]
            # Sorted, since argpartition's order inside the chosen is no contract of numpy's.
            chosen = positions[np.sort(np.argpartition(keys, count - 1)[:count])]
        else:
            chosen = positions[
                self._whole_words(input_ids, positions, count, uniform[: len(positions)], random.random(count + 2))
            ]
        labels[chosen] = input_ids[chosen]
        fate = uniform[len(positions) : len(positions) + count]
        drawn = self._ordinary[(uniform[len(positions) + count :] * len(self._ordinary)).astype(np.int64)]
        input_ids[chosen] = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, drawn, labels[chosen]))
        return input_ids, labels

    def _whole_words(
        self, ids: np.ndarray, positions: np.ndarray, count: int, uniform: np.ndarray, more: np.ndarray
    ) -> np.ndarray:
        """Indices into `positions`, in order. uniform: a random number for each position; more: `count` + 2 further ones."""
        pieces = ids[positions]
        starts = self.words.starts(pieces)
        starts[1:] |= (
            positions[1:] - positions[:-1] > 1
        )  # behind a special token a word begins, whatever its first piece
        first, lengths = divided(starts)
        log_weights = np.add.reduceat(self._log_weight[pieces], first) / lengths
        weights = np.exp(log_weights - log_weights.max())
        taken = choose_words(lengths, weights, -np.log1p(-uniform[first]) / weights, count, more[:-1])
        words = np.flatnonzero(taken)
        first, lengths, taken = first[words], lengths[words], taken[words]
        # of a word that is masked in part, some pieces that stand together
        begin = first + (more[-1] * (lengths - taken + 1)).astype(np.int64)
        return np.repeat(begin - np.cumsum(taken) + taken, taken) + np.arange(count)

    def masked_counts(self, maskable: np.ndarray) -> np.ndarray:
        """maskable int64 [B], tokens of each sequence that are not special → int64 [B]: how many of them `mask` masks, at any epoch."""
        # rint and round agree: both go to the even neighbour.
        return np.rint(self.probability * maskable).astype(np.int64)
