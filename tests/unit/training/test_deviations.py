"""Test the teacher's deviations: what they are over, and that neither ranks, micro-batches nor a resume change them."""

import dataclasses

import pytest
import torch

from benchmarks.reference.matching import inner_states
from ds_distill.losses.objective import Objective
from ds_distill.models.intermediates import LAST_HIDDEN, Site
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match
from ds_distill.training import deviations
from ds_distill.training.deviations import divide_by_deviations, measure_deviations
from tests.unit.data.test_loader import make_store, order, ragged_store
from tests.unit.models.test_teacher import tiny_bert

SITES = (Site("embeddings", 0), Site("hidden", 1), LAST_HIDDEN)
CPU = torch.device("cpu")


@pytest.fixture
def teacher():
    return Teacher(tiny_bert(3, vocab_size=512, max_position_embeddings=128))


@pytest.mark.parametrize("padded", [False, True])
def test_they_are_those_of_the_first_tokens_whatever_the_ranks(teacher, padded, monkeypatch):
    monkeypatch.setattr(deviations, "TOKENS", 500)
    monkeypatch.setattr(deviations, "BATCH_TOKENS", 200)
    store, options = (ragged_store(300), {"by_length": True}) if padded else (make_store(60), {})
    shapes = [dict(micro=2, rank=0, world=1), dict(micro=3, rank=1, world=2), dict(micro=1, rank=4, world=5)]
    loaders = [order(store, batch=10, **shape, **options, document_masking=not padded) for shape in shapes]
    measured = [measure_deviations(teacher, loader, SITES, CPU) for loader in loaders]
    for other in measured[1:]:
        assert all(torch.equal(other[site], measured[0][site]) for site in SITES)
    batches = list(deviations._first_batches(loaders[1]))
    counts = [batch.input_ids.numel() if batch.token_mask is None else int(batch.token_mask.sum()) for batch in batches]
    assert sum(counts) >= 500 > sum(counts[:-1]), "no more than is needed"
    for site in SITES:
        rows = []
        for batch in batches:
            states = inner_states(teacher.model, batch.input_ids, batch.attention_mask)[site.quantity][site.layer]
            rows.append(states.flatten(0, 1) if batch.token_mask is None else states[batch.token_mask])
        torch.testing.assert_close(measured[0][site], torch.cat(rows).double().std(0, correction=0).float())


def test_a_dimension_that_hardly_varies_does_not_decide(teacher, monkeypatch):
    monkeypatch.setattr(deviations, "TOKENS", 500)
    with torch.no_grad():
        norm = teacher.model.bert.encoder.layer[1].output.LayerNorm
        norm.weight[3] = 0.0
    (measured,) = measure_deviations(teacher, order(make_store(60)), SITES[1:2], CPU).values()
    assert measured[3] == pytest.approx(deviations.SMALLEST * measured.mean().item(), rel=0.02)


def test_a_checkpoints_figures_are_used_again(teacher, monkeypatch):
    monkeypatch.setattr(deviations, "TOKENS", 500)
    losses = Losses(match=[Match("mse", of=["embeddings", "hidden"], layers=[(0, 1)], normalize=True), Match("cosine")])
    student = build_student(teacher.model, num_layers=1)
    objectives = [Objective(student, dataclasses.replace(losses), 1, teacher.config, [1]) for _ in range(2)]
    known: dict[str, list[float]] = {}
    divide_by_deviations(objectives[0], teacher, order(make_store(60)), known, CPU)
    assert list(known) == ["embeddings 0", "hidden 1"] and all(len(values) == 32 for values in known.values())
    kept = {name: [2 * value for value in values] for name, values in known.items()}
    divide_by_deviations(objectives[1], teacher, order(make_store(60)), kept, CPU)
    first, second = (objective.matches["mse"].deviations for objective in objectives)
    assert first.keys() == second.keys() == {Site("embeddings", 0), Site("hidden", 1)}
    assert all(torch.equal(2 * first[site], second[site]) and first[site].dtype == torch.float32 for site in first)
