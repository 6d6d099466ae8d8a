"""Words in a sequence of ids, and the choice of those that are masked.

Each word has the same chance, and the number of masked pieces is fixed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

_ROUNDING = 1e-9  # the rounding error of a number of words that is a sum of fractions
# The limit is in pieces, as SpanBERT's longest span. Longer words (an address, base64) are divided
# into parts that count as words.
LONGEST_WORD = 10

# The bits that describe a piece:
SPACED = 1  # White space precedes it: it begins a word, whatever the piece before it is.
OPENS = 2  # It begins a word, unless the piece before joins.
INSIDE = 4  # It continues a character: bytes of one, or a combining mark.
CLOSES = 8  # A word begins after it.
JOINS = 16  # It is a lone space and belongs to the piece after it.
INHERITS = 32  # It has bytes inside a character; the piece before tells whether it closes.
UNFINISHED = 64  # It ends inside a character; the pieces after it tell which one.


class Words:
    """A description of where words begin.

    Args:
        bits: uint8 [V], the bits that describe each piece.
        is_marked: False where pieces do not show where words begin, and each counts as a word.
        get_joined_bits: Returns the bits of joined pieces by their ids; needed where a piece is
            UNFINISHED.
    """

    def __init__(
        self,
        bits: np.ndarray,
        is_marked: bool = True,
        get_joined_bits: Callable[[tuple[int, ...]], int] | None = None,
    ):
        self.bits, self.is_marked, self._get_joined_bits = bits, is_marked, get_joined_bits

    def starts(self, pieces: np.ndarray) -> np.ndarray:
        """Return bool [n], true where a piece begins a word.

        `pieces` holds ids [n], n > 0, each directly behind the one before.
        """
        bits = self.bits[pieces]
        if (unfinished := np.flatnonzero(bits & UNFINISHED)).size and self._get_joined_bits:
            self._finish(bits, pieces.tolist(), unfinished.tolist())
        before = bits[:-1]
        if (inherits := before & INHERITS).any():
            before = before | (bits[np.maximum.accumulate(np.where(inherits, 0, np.arange(len(before))))] & CLOSES)
        starts = bits & SPACED != 0
        opens = (bits[1:] & OPENS) | (before & CLOSES) != 0
        starts[1:] |= opens & ((bits[1:] & INSIDE) | (before & JOINS) == 0)
        starts[0] = True
        return starts

    def _finish(self, bits: np.ndarray, pieces: list[int], unfinished: list[int]) -> None:
        """Put the bits of whole characters into the pieces in which those characters begin."""
        assert self._get_joined_bits is not None
        for place in unfinished:
            end = place + 1
            while end < len(pieces) and bits[end] & INHERITS:
                end += 1
            # A piece that ends this character and continues also reveals it by its first bytes.
            end += end < len(pieces) and bits[end] & INSIDE != 0
            spaced = bits[place] & SPACED
            bits[place] = self._get_joined_bits(tuple(pieces[place:end])) & ~UNFINISHED | spaced


def split_words(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where words begin and their lengths, int64 [W].

    Words of more than 10 pieces are divided into parts of nearly the same length. `starts` is bool
    [n].
    """
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


def choose_words(
    lengths: np.ndarray, weights: np.ndarray, keys: np.ndarray, count: int, uniform: np.ndarray
) -> np.ndarray:
    """Return how many pieces of each word are masked, int64 [W], `count` in all.

    All or none of a word's pieces are masked, except for one word. The expected share of a word
    that is masked is proportional to the word's weight, whatever its length. The number of masked
    words of each length is decided length by length, the longest first, by balanced sampling
    (Deville & Tillé 2004, "Efficient balanced sampling: the cube method"). Where whole words do not
    add up to `count`, one more is masked in part. Of a word longer than `count`, `count` pieces are
    masked.

    Args:
        lengths: int64 [W], the pieces of each word.
        weights: float64 [W].
        keys: float64 [W], Exp(1) / weight. Among words of one length those with the smallest keys
            are taken.
        count: The number of pieces to mask, from 1 to the sum of lengths.
        uniform: float64 [`count` + 1] random numbers from 0 to 1.
    """
    sizes = np.minimum(lengths, count)
    available = np.bincount(sizes).tolist()
    expected = np.bincount(sizes, weights=_chances(sizes, weights, count)).tolist()
    numbers, in_part = _whole_numbers(expected, available, uniform.tolist())
    order = np.lexsort((keys, sizes))
    taken, first = np.zeros_like(sizes), 0
    for size, (words, number) in enumerate(zip(available, numbers, strict=True)):
        taken[order[first : first + number]] = size
        if size in in_part:
            taken[order[first + number]] = in_part[size]
        first += words
    return taken


def _chances(sizes: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Return each word's probability to be masked, float64 [W].

    It is proportional to the weights, at most 1, and such that `count` pieces are expected.
    """
    sizes = sizes.astype(np.float64)
    chances = weights * (count / (weights @ sizes))
    certain = np.zeros(len(sizes), bool)
    while chances.max() > 1:
        certain |= chances > 1
        scale = (count - sizes[certain].sum()) / max(weights[~certain] @ sizes[~certain], 1e-300)
        chances = np.where(certain, 1.0, weights * scale)
    return chances


def _whole_numbers(
    expected: list[float], available: list[int], uniform: list[float]
) -> tuple[list[int], dict[int, int]]:
    """Return how many words of each length are masked whole, and a word that is masked in part.

    That word is given as {length: pieces}. A fraction of a word is rounded up or down, and the
    pieces that this takes or gives are spread over the shorter words, as long as these are neither
    all masked nor none. Up and down have the chances that keep every expectation.

    Args:
        expected: How many words of each length should be masked; overwritten.
        available: How many words of each length there are.
        uniform: A random number from 0 to 1 for each length.
    """
    numbers, in_part = [0] * len(available), {}
    present = [size for size, words in enumerate(available) if words]
    while present:
        size = present.pop()
        number = min(int(expected[size] + _ROUNDING), available[size])
        fraction, draw = expected[size] - number, uniform[size]
        while _ROUNDING < fraction < 1 - _ROUNDING:
            slack = [min(expected[shorter], available[shorter] - expected[shorter]) for shorter in present]
            most = sum(map(operator.mul, slack, present))
            if most < _ROUNDING:
                in_part[size] = round(size * fraction)
                break
            # The limit is that none of the shorter lengths has fewer than no words masked, or more
            # than all.
            taking = min(expected[shorter] / part for shorter, part in zip(present, slack, strict=True) if part)
            giving = min(
                (available[shorter] - expected[shorter]) / part
                for shorter, part in zip(present, slack, strict=True)
                if part
            )
            up, down = min(size * (1 - fraction), most * taking), min(size * fraction, most * giving)
            rises = down / (up + down)
            change = up if draw < rises else -down
            # This is as good as a new random number.
            draw = draw / rises if draw < rises else (draw - rises) / (1 - rises)
            fraction += change / size
            for shorter, part in zip(present, slack, strict=True):
                expected[shorter] -= part * change / most
        numbers[size] = number + (fraction >= 1 - _ROUNDING)
    return numbers, in_part
