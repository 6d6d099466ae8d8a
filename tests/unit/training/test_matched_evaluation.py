"""Test the objective of a bare encoder, and its held-out figures against a direct computation."""

import math

import pytest
import torch

from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.losses.objective import Objective
from ds_distill.models.intermediates import LAST
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher, needed_part
from ds_distill.recipe import Losses, Match
from ds_distill.training.matched_evaluation import evaluate_matches
from tests.unit.models.test_teacher import padding_mask, randomised, tiny_bert, tokens

CPU = torch.device("cpu")
LOSSES = Losses(
    kl=0.0,
    mlm=0.0,
    cosine=0.0,
    match=[Match("mse", layers=[(0, 1)], weight=3.0), Match("cosine", layers=[(0, 2)], weight=0.5)],
)


def make_pair() -> tuple[Objective, Teacher]:
    """A student of two layers, of which the first is compared, and a teacher that stops after its third layer."""
    whole = tiny_bert(5).double()
    student = randomised(build_student(whole, init_layers=[0, 4], dropout=0.0, head=False), 7).double()
    objective = Objective(student, LOSSES, 1, whole.config, [0, 4])
    return objective, Teacher(needed_part(whole, objective.teacher_sites, head=False))


def test_a_bare_encoder_has_only_the_terms_within_and_what_learns_a_gradient():
    objective, teacher = make_pair()
    assert objective.weights == {"mse": 3.0, "cosine": 0.5} and objective.encoder_prefix == "model."
    assert not objective.has_head and all(site.layer != LAST for site in objective.teacher_sites)
    ids, mask = tokens(), padding_mask()
    targets = teacher.targets(ids, mask, sites=objective.teacher_sites)
    counts = TokenCounts(int(mask.sum()), 0)
    loss, sums = objective(ids, mask, torch.full_like(ids, -100), counts, targets)
    loss.backward()
    assert loss.item() == pytest.approx((3.0 * sums[0] + 0.5 * sums[1]).item() / counts.real, rel=1e-12)
    for name, parameter in objective.named_parameters():
        above = "layer.1." in name  # which no term reaches, so that no gradient is waited for
        assert parameter.requires_grad != above and (parameter.grad is None) == above, name
        assert above or parameter.dim() < 2 or parameter.grad.any(), name
    with pytest.raises(ValueError, match="needs counts and, but for mlm alone, targets"):
        objective(ids, mask, ids, counts)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_figures_equal_a_direct_computation_in_float64(size):
    objective, teacher = make_pair()
    ids, mask = tokens(), padding_mask()
    labels = torch.full_like(ids, -100)
    parts = zip(ids.split(size), labels.split(size), mask.split(size), strict=True)
    batches = [Batch(*part) for part in parts]
    # a row that only fills up a rank's batch
    filling = Batch(ids[:1], labels[:1], mask[:1], loss_mask=torch.zeros_like(mask[:1]))
    figures = evaluate_matches(objective, objective, teacher, [*batches, filling], CPU)

    with torch.no_grad():
        student = objective.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
        states = [teacher.targets(ids, mask, sites=[site]).states[site] for site in objective.teacher_sites]
    each = {
        "mse": (student - states[0]).square().mean(-1),
        "cosine": 1 - torch.nn.functional.cosine_similarity(student, states[1], dim=-1),
    }
    each["loss"] = 3.0 * each["mse"] + 0.5 * each["cosine"]
    assert figures["count"] == int(mask.sum())
    assert list(figures) == ["mse", "mse_se", "cosine", "cosine_se", "loss", "loss_se", "count"]
    for name, values in each.items():
        mean = values[mask].mean()
        squares = ((values - mean) * mask).sum(1).square().sum() * 3 / 2
        assert figures[name] == pytest.approx(mean.item(), rel=1e-12)
        assert figures[f"{name}_se"] == pytest.approx(math.sqrt(squares) / int(mask.sum()), rel=1e-9)
