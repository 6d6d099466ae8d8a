"""Test the packing of documents into blocks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ds_distill.data.packing import Packer

CLS, SEP = 1, 2


class Blocks(list):
    add = list.extend


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    pieces=st.integers(1, 4),
    length=st.integers(8, 12),
)
def test_no_block_begins_with_a_separator_and_no_token_is_lost(lengths, pieces, length):
    """Whatever was packed in pieces before, whose leftovers hold separators in any place."""
    documents = [np.arange(count) % 5 + 10 * (number + 1) for number, count in enumerate(lengths)]
    blocks, leftovers = Blocks(), []
    for piece in range(pieces):
        packer = Packer(blocks, length, CLS, SEP)
        for document in documents[piece::pieces]:
            packer.add(document)
        leftovers.append(packer.rest())
    packer = Packer(blocks, length, CLS, SEP)
    for leftover in leftovers:
        packer.add(leftover)
    packer.finish()
    assert all(len(block) == length for block in blocks[:-1])
    stream = []
    for block in blocks:
        assert block[0] == CLS and block[-1] == SEP and block[1] != SEP
        stream += block[1:-1].tolist()
        within = block[1:-1] // 10
        change = np.flatnonzero(np.diff(np.where(within == 0, -1, within)))
        assert all(SEP in block[1 + place : 3 + place] for place in change)  # between two documents
    ids = [i for i in stream if i != SEP]
    assert sorted(ids) == sorted(np.concatenate(documents).tolist())
