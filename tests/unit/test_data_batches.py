"""Masks and order: pure functions of seed and step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ds_distill.data.batches import BatchOrder, heldout_batches
from ds_distill.data.masking import IGNORED, Masker, masked_count
from ds_distill.data.store import TokenStore
from ds_distill.errors import UserError

VOCAB, LENGTH, SPECIAL, MASK = 100, 32, [0, 1, 2, 3, 4], 4


def make_store(blocks=45, short=10, seed=0):
    """Blocks [CLS] … [SEP] … [SEP] with a short last one, 0 the padding."""
    ids = np.random.default_rng(seed).integers(5, VOCAB, (blocks, LENGTH)).astype(np.uint16)
    ids[:, 0], ids[:, -1] = 2, 3
    ids[::3, 7] = 3  # a separator inside: fewer maskable tokens in every third block
    if short < LENGTH:
        ids[-1, short - 1], ids[-1, short:] = 3, 0
    manifest = {"real_tokens": {"train": blocks * LENGTH - (LENGTH - short)}, "blocks": {"train": blocks}}
    return TokenStore(Path("store"), "train", manifest, ids, np.bincount(ids.ravel(), minlength=VOCAB))


def make_masker(store, seed=1):
    return Masker(store.token_counts, SPECIAL, MASK, VOCAB, seed)


def order(store, *, micro=2, rank=0, world=1, batch=8, seed=1):
    return BatchOrder(store, make_masker(store, seed), seed=seed, global_batch=batch, micro_batch=micro, rank=rank, world_size=world)


def test_every_block_masks_exactly_its_count_and_no_special():
    store = make_store()
    masker = make_masker(store)
    for block, ids in enumerate(store.blocks):
        inputs, labels = masker.mask(ids, epoch=0, block=block)
        maskable = ~np.isin(ids, SPECIAL)
        chosen = labels != IGNORED
        assert chosen.sum() == round(0.15 * maskable.sum()) == masker.masked_counts(ids[None])[0]
        assert not (chosen & ~maskable).any()
        assert (labels[chosen] == ids[chosen]).all() and (inputs[~chosen] == ids[~chosen]).all()
        assert inputs.dtype == labels.dtype == np.int64
    masker_counts = Masker(np.ones(2), [0], 0, 2, 0).masked_counts(np.tril(np.ones((600, 600), int)))
    assert masker_counts.tolist() == [masked_count(n) for n in range(1, 601)]


def test_a_block_without_enough_tokens_masks_none():
    store = make_store()
    inputs, labels = make_masker(store).mask(np.array([2, 9, 3, 0]), epoch=0, block=0)
    assert inputs.tolist() == [2, 9, 3, 0] and (labels == IGNORED).all()


def test_eighty_ten_ten():
    rng = np.random.default_rng(0)
    masker = Masker(np.ones(10_000, np.int64), SPECIAL, MASK, 10_000, 5)
    kept = masked = total = 0
    drawn = []
    for block in range(300):
        ids = rng.integers(5, 10_000, 512)
        inputs, labels = masker.mask(ids, epoch=0, block=block)
        at = labels != IGNORED
        total += at.sum()
        masked += (inputs[at] == MASK).sum()
        kept += (inputs[at] == labels[at]).sum()
        drawn.extend(inputs[at & (inputs != MASK) & (inputs != ids)])
    assert masked / total == pytest.approx(0.8, abs=0.01)  # 2.5 % of 23 100: about four standard deviations
    assert kept / total == pytest.approx(0.1, abs=0.01)
    assert len(drawn) / total == pytest.approx(0.1, abs=0.01)
    assert min(drawn) >= 5 and np.mean(drawn) == pytest.approx(5000, rel=0.06)


def test_rare_tokens_are_preferred_by_count_to_the_minus_smoothing():
    counts = np.full(VOCAB, 1000)
    counts[50:] = 10
    masker = Masker(counts, SPECIAL, MASK, VOCAB, 0)
    ids = np.array([10] * 500 + [60] * 500)
    # One draw of few without replacement is nearly one with it: odds (1000/10)^0.7 = 25.
    masker.probability = 0.005
    labels = np.concatenate([masker.mask(ids, epoch=0, block=b)[1] for b in range(1000)])
    rare, common = (labels == 60).sum(), (labels == 10).sum()
    assert rare / common == pytest.approx(100**0.7, rel=0.3)


def test_masks_depend_on_seed_epoch_and_block_and_nothing_else():
    store = make_store()
    masker, ids = make_masker(store), store.blocks[0]
    first = [masker.mask(ids, epoch=e, block=b) for e in range(3) for b in range(3)]
    again = [make_masker(store).mask(ids, epoch=e, block=b) for e in reversed(range(3)) for b in reversed(range(3))][::-1]
    assert all((x == y).all() for one, two in zip(first, again, strict=True) for x, y in zip(one, two, strict=True))
    assert len({labels.tobytes() for _, labels in first}) == 9
    assert (make_masker(store, seed=2).mask(ids, epoch=0, block=0)[1] != first[0][1]).any()


def test_batches_are_the_same_at_every_world_size_and_micro_batch():
    store = make_store()

    def union(step, world, micro):
        rows = {}
        for rank in range(world):
            batches = order(store, micro=micro, rank=rank, world=world)
            assert len(batches.micro_batches(step)) == batches.accumulation == 8 // (micro * world)
            for m, batch in enumerate(batches.micro_batches(step)):
                assert batch.input_ids.shape == (micro, LENGTH) and batch.input_ids.dtype == batch.labels.dtype == torch.long
                for j in range(micro):
                    rows[(m * world + rank) * micro + j] = (batch.input_ids[j].tolist(), batch.labels[j].tolist())
        return [rows[i] for i in range(8)]

    for step in (0, 4, 7):
        reference = union(step, 1, 8)
        for world, micro in ((1, 1), (1, 2), (2, 1), (2, 4), (4, 1), (4, 2)):
            assert union(step, world, micro) == reference


def test_counts_are_what_the_batches_hold():
    store = make_store(blocks=40)
    padded = 0
    for step in range(5):
        real = masked = 0
        for rank in range(2):
            for batch in order(store, rank=rank, world=2).micro_batches(step):
                mask = batch.attention_mask
                padded += mask is not None
                assert (batch.input_ids == 0).any() == (mask is not None)
                real += batch.input_ids.numel() if mask is None else int(mask.sum())
                masked += int((batch.labels != IGNORED).sum())
        assert order(store, world=2).counts(step) == (real, masked)
    assert padded == 1  # the epoch uses every block: the short one comes once


def test_an_epoch_is_a_permutation_and_the_next_another():
    store = make_store()
    batches = order(store)
    assert batches.steps_per_epoch == 5  # 45 blocks: five are left out
    first, second = (np.concatenate([batches.indices(s) for s in steps]) for steps in (range(5), range(5, 10)))
    assert len(set(first)) == len(set(second)) == 40
    assert (first != second).any() and (order(store, seed=2).indices(0) != batches.indices(0)).any()
    assert (order(store).indices(7) == batches.indices(7)).all() and batches.epoch(7) == 1


def test_impossible_batches_are_refused_with_the_numbers():
    store = make_store()
    with pytest.raises(UserError, match="= 10: .* 4 × 1 ranks = 4; use 8 or 12"):
        order(store, batch=10, micro=4)
    with pytest.raises(UserError, match="45 blocks are fewer than one global batch of 64"):
        order(store, batch=64)
    with pytest.raises(UserError, match="rank 2 of 2"):
        order(store, rank=2, world=2)


def test_prefetch_gives_the_same_steps_and_raises_here():
    batches = order(make_store())
    made = list(batches.prefetch(3, 8))
    assert [step for step, _, _ in made] == [3, 4, 5, 6, 7]
    for step, micro, counts in made:
        assert counts == batches.counts(step)
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(micro, batches.micro_batches(step), strict=True))
    iterator = batches.prefetch(0, 10**9)
    next(iterator)
    iterator.close()  # returns: the thread has ended
    with pytest.raises(ValueError, match="step -1"):
        list(batches.prefetch(-1, 3))


def test_heldout_masks_never_change_and_cover_every_block():
    store = make_store(blocks=10)
    one, two = list(heldout_batches(store, make_masker(store), 4)), list(heldout_batches(store, make_masker(store), 3))
    assert [len(b.labels) for b in one] == [4, 4, 2]
    assert torch.equal(torch.cat([b.labels for b in one]), torch.cat([b.labels for b in two]))
    assert one[0].attention_mask is None and one[-1].attention_mask.sum() == LENGTH + 10
    assert sum(len(b.labels) for b in heldout_batches(store, make_masker(store), 4, max_blocks=5)) == 5
    moved = one[-1].to("cpu")
    assert torch.equal(moved.attention_mask, one[-1].attention_mask)
