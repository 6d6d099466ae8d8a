"""The choice of the tokens that the student must predict: a pure function of (seed, epoch, block)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ds_distill.data.whole_words import Words, choose_words, split_words

IGNORE_INDEX = -100  # the label that cross-entropy skips
_STREAM = 0x6D61736B  # "mask": keeps these draws apart from every other use of the seed


REPLACED = 0.8  # share of the masked tokens that become [MASK]


def masked_count(n: int, probability: float = 0.15) -> int:
    """Return how many of `n` maskable tokens a block masks.

    A block masks exactly this many, so counting does not need the masks.
    """
    return round(probability * n)


class Masker:
    """A masker that masks 15 % of a sequence's tokens and prefers rare ones.

    Of these, 80 % become [MASK], 10 % become a random token and 10 % are kept.

    Source: Sanh et al. 2019; p ∝ count^-0.7 from their code, after XLM (Lample & Conneau 2019);
    whole words as in BERT's later release.

    Args:
        token_counts: [V] occurrences in the training text.
        special_ids: Ids, padding among them, that are never masked and never drawn.
        words: Where words begin. Words are then masked whole, each with the same chance apart from
            its rarity, the geometric mean of its pieces' rarities.
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
        """Mask one sequence.

        Args:
            ids: [L] token ids.
            epoch: The epoch, which selects the random stream together with `block`.
            block: The block's number.

        Returns:
            (input_ids int64 [L], labels int64 [L], which are -100 where unmasked).
        """
        input_ids = ids.astype(np.int64)
        labels = np.full(len(input_ids), IGNORE_INDEX, np.int64)
        positions = np.flatnonzero(self.maskable[input_ids])
        count = masked_count(len(positions), self.probability)
        if count == 0:
            return input_ids, labels
        # Block and epoch are in the counter's upper half, which drawing never reaches, so every
        # pair has a stream of its own.
        random = np.random.Generator(np.random.Philox(key=[self.seed, _STREAM], counter=[0, 0, block, epoch]))
        uniform = random.random(len(positions) + 2 * count)
        if self.words is None:
            # The k smallest Exp(1)/weight are a draw without replacement with p ∝ weight: Gumbel
            # top-k without the logarithm.
            keys = -np.log1p(-uniform[: len(positions)]) * self._inverse_weight[input_ids[positions]]
            # The result is sorted, since numpy does not guarantee argpartition's order among the
            # chosen.
            chosen = positions[np.sort(np.argpartition(keys, count - 1)[:count])]
        else:
            chosen = positions[
                self._whole_words(input_ids, positions, count, uniform[: len(positions)], random.random(count + 2))
            ]
        labels[chosen] = input_ids[chosen]
        fate = uniform[len(positions) : len(positions) + count]
        drawn = self._ordinary[(uniform[len(positions) + count :] * len(self._ordinary)).astype(np.int64)]
        input_ids[chosen] = np.where(fate < REPLACED, self.mask_id, np.where(fate < 0.9, drawn, labels[chosen]))
        return input_ids, labels

    def _whole_words(
        self, ids: np.ndarray, positions: np.ndarray, count: int, uniform: np.ndarray, extra: np.ndarray
    ) -> np.ndarray:
        """Return the chosen indices into `positions`, in order.

        `uniform` has a random number for each position, and `extra` has `count` + 2 further ones.
        """
        assert self.words is not None
        pieces = ids[positions]
        starts = self.words.starts(pieces)
        # After a special token a word begins, whatever its first piece is.
        starts[1:] |= positions[1:] - positions[:-1] > 1
        first, lengths = split_words(starts)
        log_weights = np.add.reduceat(self._log_weight[pieces], first) / lengths
        weights = np.exp(log_weights - log_weights.max())
        taken = choose_words(lengths, weights, -np.log1p(-uniform[first]) / weights, count, extra[:-1])
        words = np.flatnonzero(taken)
        first, lengths, taken = first[words], lengths[words], taken[words]
        # In a word that is masked in part, the masked pieces are adjacent.
        begin = first + (extra[-1] * (lengths - taken + 1)).astype(np.int64)
        return np.repeat(begin - np.cumsum(taken) + taken, taken) + np.arange(count)

    def masked_counts(self, maskable: np.ndarray) -> np.ndarray:
        """Return how many tokens of each sequence `mask` masks, at any epoch: int64 [B].

        `maskable`, int64 [B], holds the number of tokens of each sequence that are not special.
        """
        # rint and round agree: both go to the even neighbor.
        return np.rint(self.probability * maskable).astype(np.int64)
