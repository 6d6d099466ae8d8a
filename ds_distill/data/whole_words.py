"""Words in a sequence of ids, and which of them are masked whole: each with the same chance, however many pieces it has, so many pieces in all."""

from __future__ import annotations

import operator

import numpy as np

LONGEST_WORD = 10  # pieces, SpanBERT's longest span; what is longer (an address, base64) is divided into parts that count as words

# What is known of a piece, bit by bit.
SPACED = 1  # white space before it: it begins a word, whatever stands before it
OPENS = 2  # it begins a word, unless the piece before joins
INSIDE = 4  # it goes on with a character: bytes of one, a combining mark
CLOSES = 8  # after it a word begins
JOINS = 16  # it is a space alone, and belongs to the piece after it
INHERITS = 32  # bytes inside a character: whether it closes, the piece before tells


class Words:
    """Tells where words begin. bits: uint8 [V], what is known of each piece; told: false where pieces do not show it, and each counts as a word."""

    def __init__(self, bits: np.ndarray, told: bool = True):
        self.bits, self.told = bits, told

    @classmethod
    def of_continuing(cls, continues: np.ndarray) -> Words:
        """From a table, bool [V], of the pieces that go on with a word."""
        return cls(np.where(continues, 0, SPACED).astype(np.uint8))

    def starts(self, pieces: np.ndarray) -> np.ndarray:
        """bool [n], true where a piece begins a word. pieces: ids [n], n > 0, each directly behind the one before."""
        bits = self.bits[pieces]
        before = bits[:-1]
        if (inherits := before & INHERITS).any():
            before = before | (bits[np.maximum.accumulate(np.where(inherits, 0, np.arange(len(before))))] & CLOSES)
        starts = bits & SPACED != 0
        opens = (bits[1:] & OPENS) | (before & CLOSES) != 0
        starts[1:] |= opens & ((bits[1:] & INSIDE) | (before & JOINS) == 0)
        starts[0] = True
        return starts


def divided(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words begin, and their lengths, int64 [W], with those of more than 10 pieces in parts of nearly the same length. starts: bool [n]."""
    first = np.flatnonzero(starts)
    lengths = np.empty_like(first)
    lengths[:-1] = first[1:] - first[:-1]
    lengths[-1] = len(starts) - first[-1]
    if lengths.max() <= LONGEST_WORD:
        return first, lengths
    parts = -(-lengths // LONGEST_WORD)
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    lengths, parts, first = (np.repeat(array, parts) for array in (lengths, parts, first))
    return first + part * lengths // parts, (part + 1) * lengths // parts - part * lengths // parts


def choose_words(lengths: np.ndarray, weights: np.ndarray, keys: np.ndarray, count: int, uniform: np.ndarray) -> np.ndarray:
    """Return how many pieces of each word are masked, int64 [W], `count` in all: all or none of a word's, but for what the count does not allow.

    A word's chance is in proportion to its weight, whatever its length. How many words of each length are masked is decided length by length, the
    longest first: the expected number is rounded up or down with the chance of its fraction, and the pieces that this takes or leaves are spread over
    the shorter words. So every expectation stays as it was (Deville & Tillé 2004, "Efficient balanced sampling: the cube method"), and words of one
    piece take up what is left. Of a word longer than `count`, `count` pieces are masked; of one word in part, where none of one piece is left.

    Args:
        lengths: int64 [W], pieces of each word.
        weights: float64 [W].
        keys: float64 [W]; among words of one length the smallest are taken: Exp(1) / weight.
        count: Pieces to mask, from 1 to the sum of lengths.
        uniform: float64 [`count` + 1] random numbers from 0 to 1.
    """
    sizes = np.minimum(lengths, count)
    available = np.bincount(sizes).tolist()
    expected = np.bincount(sizes, weights=_chances(sizes, weights, count)).tolist()
    numbers = _whole_numbers(expected, available, count, uniform.tolist())
    order = np.lexsort((keys, sizes))
    taken, first, rest = np.zeros_like(sizes), 0, count
    for size, (words, number) in enumerate(zip(available, numbers, strict=True)):
        taken[order[first : first + number]] = size
        first, rest = first + words, rest - number * size
    for word in order[taken[order] == 0] if rest else ():
        taken[word] = min(rest, sizes[word])
        rest -= taken[word]
    return taken


def _chances(sizes: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Of each word to be masked, float64 [W]: in proportion to the weights, at most 1, and so that `count` pieces are expected."""
    sizes = sizes.astype(np.float64)
    chances = weights * (count / (weights @ sizes))
    certain = np.zeros(len(sizes), bool)
    while chances.max() > 1:
        certain |= chances > 1
        scale = (count - sizes[certain].sum()) / max(weights[~certain] @ sizes[~certain], 1e-300)
        chances = np.where(certain, 1.0, weights * scale)
    return chances


def _whole_numbers(expected: list[float], available: list[int], count: int, uniform: list[float]) -> list[int]:
    """How many words of each length are masked, by length; expected: how many should be, which makes `count` pieces."""
    numbers, left = [0] * len(available), count
    present = [size for size, words in enumerate(available) if words]
    while len(present) > 1:
        size = present.pop()
        # rounded up with the chance of the fraction
        numbers[size] = number = min(int(expected[size] + uniform[size]), left // size, available[size])
        left -= number * size
        # what the shorter words take over, each length as far as it is from none and from all
        change = size * (expected[size] - number)
        slack = [min(expected[shorter], available[shorter] - expected[shorter]) for shorter in present]
        most = sum(map(operator.mul, slack, present))
        for shorter, part in zip(present, slack, strict=True):
            if abs(change) < most:
                expected[shorter] += part * change / most
            else:
                room = sum(available[other] * other for other in present)
                expected[shorter] = available[shorter] * min(1.0, left / room)
    numbers[present[0]] = min(left // present[0], available[present[0]])
    return numbers
