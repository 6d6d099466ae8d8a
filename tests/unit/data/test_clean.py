"""Test clean sequences: which they are depends on seed, epoch and sequence alone, and batches and counts follow."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_distill.data.clean import CleanSequences
from ds_distill.data.loader import heldout_batches
from ds_distill.data.masking import IGNORE_INDEX
from tests.unit.data.test_loader import make_masker, make_store, order, ragged_store

SEEDS, EPOCHS, FRACTIONS = st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1), st.floats(0, 1)
ENTRIES = st.lists(st.integers(0, 2**62), min_size=1, max_size=50)


@given(SEEDS, EPOCHS, FRACTIONS, FRACTIONS, ENTRIES)
def test_each_sequence_is_drawn_by_itself(seed, epoch, one, other, entries):
    low, high = (CleanSequences(seed, fraction) for fraction in sorted((one, other)))
    drawn = low(epoch, np.array(entries))
    assert drawn.tolist() == [bool(low(epoch, np.array([entry]))[0]) for entry in entries]
    assert not (drawn & ~high(epoch, np.array(entries))).any()  # a greater share has the same sequences, and more
    assert CleanSequences(seed, 1.0)(epoch, np.array(entries)).all()
    assert not CleanSequences(seed, 0.0)(epoch, np.array(entries)).any()


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
def test_the_share_is_right_and_epochs_seeds_and_neighbors_are_independent(fraction):
    count, entries = 40_000, np.arange(40_000)
    here = CleanSequences(3, fraction)(0, entries)
    others = [CleanSequences(3, fraction)(1, entries), CleanSequences(4, fraction)(0, entries), np.roll(here, 1)]
    assert abs(here.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / count)
    for other in others:
        both = fraction**2
        assert abs((here & other).mean() - both) < 4 * np.sqrt(both * (1 - both) / count)


def rows_of(batches):
    """Each row's tokens, labels and whether the vocabulary losses look at it, of the rows that the losses count."""
    rows = []
    for batch in batches:
        for number, (ids, labels) in enumerate(zip(batch.input_ids, batch.labels, strict=True)):
            real = torch.ones_like(ids, dtype=torch.bool) if batch.token_mask is None else batch.token_mask[number]
            if batch.loss_mask is None or batch.loss_mask[number].any():
                rows.append((ids[real].tolist(), labels[real].tolist(), number in batch.masked_rows))
            else:
                assert number not in batch.masked_rows
    return sorted(rows)


@pytest.mark.parametrize("by_length", [False, True])
def test_batches_and_counts_agree_on_any_ranks(by_length):
    store = ragged_store(120) if by_length else make_store(120)
    options = {"batch": 24, "clean_fraction": 0.6, "by_length": by_length}
    everything, sequences = [], [store.sequence(number).tolist() for number in range(120)]
    for step in (0, 2, 6):
        shapes = []
        for world, micro in ((1, 24), (2, 5), (5, 3), (30, 1)):
            loaders = [order(store, world=world, rank=rank, micro=micro, **options) for rank in range(world)]
            shapes.append(rows_of(batch for loader in loaders for batch in loader.micro_batches(step)))
            assert len({loader.counts(step) for loader in loaders}) == 1
        assert all(rows == shapes[0] for rows in shapes) and len(shapes[0]) == 24
        counts = loaders[0].counts(step)
        masked = [sum(label != IGNORE_INDEX for label in labels) for _, labels, _ in shapes[0]]
        assert counts.masked == sum(masked) and counts.real == sum(len(ids) for ids, _, _ in shapes[0])
        assert counts.clean == sum(len(ids) for ids, _, looked_at in shapes[0] if not looked_at)
        for (ids, _, looked_at), count in zip(shapes[0], masked, strict=True):
            assert count == 0 and ids in sequences if not looked_at else count > 0
        everything += [looked_at for _, _, looked_at in shapes[0]]
    assert any(everything) and not all(everything)


def test_masks_stay_and_a_sequence_is_clean_in_some_epochs_only():
    store = make_store(40)
    plain, half = order(store, batch=40, micro=40), order(store, batch=40, micro=40, clean_fraction=0.5)
    clean_in = np.zeros((8, 40), bool)
    for epoch in range(8):
        (usual,), (mixed,) = plain.micro_batches(epoch), half.micro_batches(epoch)
        rows = mixed.masked_rows
        assert torch.equal(usual.input_ids[rows], mixed.input_ids[rows])
        assert torch.equal(usual.labels[rows], mixed.labels[rows]) and usual.masked_rows is None
        clean = np.ones(40, bool)
        clean[rows.numpy()] = False
        clean_in[epoch, half.get_indices(epoch)[clean]] = True
    assert 0.3 < clean_in.mean() < 0.7 and (clean_in.any(0) & ~clean_in.all(0)).sum() > 35


@pytest.mark.parametrize("process", [False, True], ids=["thread", "process"])
def test_batches_made_ahead_of_time_and_after_a_resume_are_the_same(process):
    store = make_store(40)
    loader = order(store, batch=3, micro=1, rank=4, world=5, clean_fraction=1.0)  # this rank has no sequence
    (_, (batch,), counts), *_ = loader.prefetch(2, 3, process=process)
    assert batch.masked_rows.dtype == torch.int64 and batch.masked_rows.shape == (0,)
    assert counts == loader.counts(2) and counts.masked == 0 and counts.clean == counts.real
    mixed, later = (order(store, batch=8, micro=8, clean_fraction=0.5) for _ in range(2))
    steps = list(mixed.prefetch(0, 6, process=process))[4:]
    for (_, (one,), counts), (_, (other,), again) in zip(steps, later.prefetch(4, 6, process=process), strict=True):
        assert torch.equal(one.input_ids, other.input_ids) and torch.equal(one.masked_rows, other.masked_rows)
        assert counts == again


def test_heldout_text_is_always_masked():
    store = make_store(20)
    for batch in heldout_batches(store, make_masker(store), 5):
        assert batch.masked_rows is None and ((batch.labels != IGNORE_INDEX).sum(1) > 0).all()
