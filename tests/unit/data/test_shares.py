"""Test the division of a global batch among any ranks: each sequence once, and rows that fill up count nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_distill.data.batch import Batch, BatchArrays, compute_cu_seqlens
from ds_distill.data.masking import IGNORE_INDEX
from ds_distill.data.shares import Shares, fill_up
from ds_distill.losses.objective import Objective
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match, Training
from tests.unit.data.test_loader import make_store, order, ragged_store
from tests.unit.models.test_teacher import padding_mask, tiny_bert, tokens

SIZES = st.integers(1, 300)


@given(SIZES, st.integers(1, 40), st.integers(1, 70))
def test_every_sequence_is_in_one_part(batch, micro, world):
    shares = Shares(batch, micro, world)
    parts = [shares.part(m, rank) for m in range(shares.accumulation) for rank in range(world)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(batch))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) == shares.rows <= micro
    assert shares.filled_fraction == pytest.approx(1 - batch / (shares.rows * len(parts)))
    # with one micro-batch fewer there would be no room for all
    assert (shares.accumulation - 1) * world * micro < batch


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 16))
def test_equal_shares_lie_micro_step_by_micro_step_and_rank_by_rank(accumulation, micro, world):
    shares = Shares(accumulation * micro * world, micro, world)
    places = np.arange(shares.global_batch_size).reshape(accumulation, world, micro)
    assert shares.accumulation == accumulation and shares.rows == micro and shares.filled_fraction == 0
    for m in range(accumulation):
        for rank in range(world):
            assert np.arange(shares.global_batch_size)[shares.part(m, rank)].tolist() == places[m, rank].tolist()


@given(SIZES, st.integers(1, 40), st.integers(1, 70))
def test_a_recipes_micro_batch_fills_up_one_row_at_most(batch, most, world):
    training = Training(global_batch_size=batch, micro_batch_size=most)
    size = training.resolve_micro_batch(world)
    shares = Shares(batch, size, world)
    assert size == shares.rows <= most and all(Shares(batch, n, world).rows == n for n in training.micro_batches(world))
    if batch % world == 0:
        assert shares.filled_fraction == 0


def counted_rows(loaders, step):
    """The real tokens and labels of all rows that the losses of these ranks count, sorted."""
    rows = []
    for loader in loaders:
        batches = loader.micro_batches(step)
        assert len(batches) == loader.accumulation
        assert all(len(batch.input_ids) == loader.shares.rows for batch in batches)
        for batch in batches:
            real = torch.ones_like(batch.labels, dtype=torch.bool) if batch.token_mask is None else batch.token_mask
            counted = real if batch.loss_mask is None else batch.loss_mask
            assert not (counted & ~real).any() and (batch.labels[~counted] == IGNORE_INDEX).all()
            for ids, labels, mask in zip(batch.input_ids, batch.labels, counted, strict=True):
                if mask.any():
                    rows.append((ids[mask].tolist(), labels[mask].tolist()))
    return sorted(rows)


@pytest.mark.promise(
    "Any number of ranks resumes any global batch: equal batches and masks, losses within 1e-5 (fp32, no dropout)"
)
@pytest.mark.parametrize("by_length", [False, True])
def test_sixty_four_and_fifty_six_ranks_have_the_same_steps(by_length):
    store = ragged_store(600) if by_length else make_store(600)
    for step in (0, 1, 3):
        steps = []
        for world in (64, 56, 64):
            loaders = [
                order(store, batch=256, micro=3, rank=rank, world=world, by_length=by_length) for rank in range(world)
            ]
            entries = np.concatenate([part for loader in loaders for part in loader.rank_entries(step)])
            assert sorted(entries) == sorted(loaders[0].get_indices(step)) and len(set(entries)) == 256
            steps.append((counted_rows(loaders, step), {loader.counts(step) for loader in loaders}))
        assert steps[0] == steps[1] == steps[2] and len(steps[0][0]) == 256 and len(steps[0][1]) == 1


def test_more_ranks_than_sequences():
    store = make_store()
    loaders = [order(store, batch=3, micro=2, rank=rank, world=8, document_masking=True) for rank in range(8)]
    assert len(counted_rows(loaders, 0)) == 3
    empty = [loader for loader in loaders if not len(loader.rank_entries(0)[0])]
    assert len(empty) == 5 and not any(loader.micro_batches(0)[0].loss_mask.any() for loader in empty)


def arrays_of(mode: str) -> BatchArrays:
    ids, mask = tokens(), padding_mask()
    labels = torch.where((torch.arange(ids.shape[1]) % 4 == 1) & mask, ids, IGNORE_INDEX)
    if mode == "full":
        labels = torch.where(torch.arange(ids.shape[1]) % 4 == 1, ids, IGNORE_INDEX)
        return BatchArrays(ids.numpy(), labels.numpy(), None, None, None)
    if mode == "padded":
        return BatchArrays(ids.numpy(), labels.numpy(), mask.numpy(), None, None)
    documents = torch.where(mask, (torch.arange(ids.shape[1]) >= 3).long(), -1).numpy()
    return BatchArrays(ids.numpy(), labels.numpy(), mask.numpy(), documents, compute_cu_seqlens(documents))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["full", "padded", "documents"])
@pytest.mark.parametrize("kl_tokens", ["all", "masked"])
def test_rows_that_fill_up_change_nothing(mode, kl_tokens, checkpointing):
    """With them, losses and gradients are those without them; where there is nothing else, exactly zero."""
    teacher = Teacher(tiny_bert(4))
    losses = Losses(kl_tokens=kl_tokens, match=[Match("mse"), Match("cosine")])
    objective = Objective(build_student(teacher.model, dropout=0.0), losses, 1, teacher.config, [0, 3])
    if checkpointing:
        objective.model.gradient_checkpointing_enable()
    arrays = arrays_of(mode)
    count = len(arrays.input_ids)

    def step(arrays: BatchArrays) -> tuple:
        batch = Batch.from_arrays(arrays)
        objective.zero_grad()
        inputs = batch.input_ids, batch.attention_mask
        targets = teacher.targets(*inputs, sites=objective.teacher_sites)
        loss, sums = objective(*inputs, batch.labels, (30, 9), targets, loss_mask=batch.loss_mask)
        loss.backward()
        return sums, [p.grad.clone() for p in objective.parameters() if p.grad is not None]

    filled = fill_up(arrays, count, count + 3)
    assert filled.input_ids.shape == (count + 3, arrays.input_ids.shape[1])
    (sums, gradients), (filled_sums, filled_gradients) = step(arrays), step(filled)
    assert torch.allclose(filled_sums, sums, rtol=1e-5) and len(gradients) == len(filled_gradients)
    for a, b in zip(gradients, filled_gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    sums, gradients = step(fill_up(arrays, 0, count))
    assert sums.tolist() == [0.0] * len(objective.weights) and len(gradients) == len(filled_gradients)
    assert all(not gradient.any() for gradient in gradients)
