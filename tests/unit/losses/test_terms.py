"""Test the terms of the objective: which layers they compare, their names, their weights and their gradients."""

import pytest
import torch

from ds_distill.data.batch import TokenCounts
from ds_distill.losses.matching import LOSSES, cosine_distance_sum
from ds_distill.losses.objective import Objective
from ds_distill.losses.terms import make_matches, resolve_pairs
from ds_distill.models.intermediates import LAST, LAST_HIDDEN, Site, run_encoder
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import FAMILIES, padding_mask, tiny_bert, tokens


def test_pairs_of_layers():
    assert resolve_pairs("last", 3, 6, None) == [(LAST, LAST)]
    assert resolve_pairs("mapped", 3, 6, [0, 2, 5]) == [(0, 0), (1, 2), (LAST, LAST)]
    assert resolve_pairs([(0, 1), (2, 5), (2, 3)], 3, 6, None) == [(0, 1), (LAST, LAST), (LAST, 3)]


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (
            {"layers": "mapped"},
            r"losses\.match\[0\]\.layers = mapped: the student does not start from the teacher's layers",
        ),
        ({"layers": [(3, 0)]}, r"losses\.match\[0\]\.layers: student layer 3: the student has 2 layers, 0 to 1"),
        ({"layers": [(0, 4)]}, r"losses\.match\[0\]\.layers: teacher layer 4: the teacher has 4 layers, 0 to 3"),
        ({"layers": []}, r"losses\.match\[0\]\.layers is empty"),
        (
            {"layers": [(0, 2), (1, 3), (0, 2)]},
            r"losses\.match\[0\]\.layers: the pair \[0, 2\] is given twice; give it once",
        ),
        ({"loss": "cosin"}, r"losses\.match\[0\]\.loss = cosin: no such loss; did you mean cosine\?"),
    ],
)
def test_a_match_that_cannot_be_is_refused(match, message):
    teacher = tiny_bert(4)
    student = build_student(teacher, init_layers="random", num_layers=2)
    with pytest.raises(UserError, match=message):
        make_matches(Losses(match=[Match(**({"loss": "cosine"} | match))]), student.config, teacher.config, None)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_recorder_returns_what_transformers_calls_hidden_states(make):
    model, ids, mask = make(), tokens(), padding_mask()
    sites = [Site("hidden", 0), Site("hidden", 1), LAST_HIDDEN]
    with torch.no_grad():
        hidden, states = run_encoder(model, ids, mask, sites=sites)
        expected = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert torch.equal(hidden, expected[-1])
    assert all(torch.equal(states[site], wanted) for site, wanted in zip(sites, expected[1:], strict=True))


def test_names_and_weights():
    model = tiny_bert()
    terms = Losses(kl=5.0, match=[Match("cosine", layers="last", weight=3.0), Match("cosine", layers=[(0, 1)])])
    assert Objective(tiny_bert(), terms, 1).weights == {
        "kl": 5.0,
        "mlm": 2.0,
        "cosine": 1.0,
        "cosine_2": 3.0,
        "cosine_3": 1.0,
    }
    alone = Objective(model, terms.without_teacher(), 1)
    assert alone.weights == {"mlm": 2.0} and not alone.teacher_sites and not terms.without_teacher().need_teacher
    assert Losses(kl=0.0, cosine=0.0, match=[Match("cosine")]).need_teacher


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_cosine_loss_is_a_match_of_the_last_layers(checkpointing):
    """Both ways to ask for it give bit-equal losses and gradients."""
    teacher, results = Teacher(tiny_bert(4)), []
    for losses in (Losses(), Losses(cosine=0.0, match=[Match("cosine", layers=[(1, 3)], weight=1.0)])):
        objective = Objective(build_student(teacher.model, dropout=0.0), losses, 1, teacher.config, [0, 3])
        if checkpointing:
            objective.model.gradient_checkpointing_enable()
        ids, mask = tokens(), padding_mask()
        labels = torch.where((torch.arange(12) % 4 == 1) & mask, ids, -100)
        targets = teacher.targets(ids, mask, sites=objective.teacher_sites)
        loss, sums = objective(ids, mask, labels, (int(mask.sum()), int((labels >= 0).sum())), targets)
        loss.backward()
        results.append((loss, sums, *(p.grad for p in objective.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layers_within_are_summed_over_and_weighted():
    teacher = Teacher(tiny_bert(4))
    student = build_student(teacher.model, dropout=0.0)
    losses = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[Match("cosine", layers="mapped", weight=7.0)])
    objective = Objective(student, losses, 2, teacher.config, [0, 3])
    ids, mask, counts = tokens(), padding_mask(), TokenCounts(real=50, masked=9)
    labels = torch.full_like(ids, -100)
    targets = teacher.targets(ids, mask, sites=objective.teacher_sites)
    loss, sums = objective(ids, mask, labels, counts, targets)
    with torch.no_grad():
        student_states = student(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        teacher_states = teacher.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    expected = cosine_distance_sum(student_states[1], teacher_states[1], mask) + cosine_distance_sum(
        student_states[2], teacher_states[4], mask
    )
    assert list(objective.weights) == ["cosine"] and sums.tolist() == pytest.approx([expected.item()], rel=1e-6)
    assert loss.item() == pytest.approx(2 * 7.0 * expected.item() / 50, rel=1e-6)
    assert objective.means(sums.tolist(), counts)["cosine"] == pytest.approx(expected.item() / 50, rel=1e-6)


def test_a_term_without_its_teacher_is_refused():
    ids = tokens()
    with pytest.raises(ValueError, match="kl, mlm, cosine needs counts and, but for mlm alone, targets"):
        Objective(tiny_bert(), Losses(), 1)(ids, None, ids, TokenCounts(1, 1))


def test_a_checkpoint_of_an_earlier_version_is_read():
    teacher = tiny_bert(4)
    objective = Objective(build_student(teacher, hidden_size=16), Losses(), 1, teacher.config)
    state = objective.state_dict()
    weight = state.pop("matches.cosine.projection.weight") + 1
    objective.load_state_dict(state | {"widen.weight": weight})
    assert torch.equal(objective.matches["cosine"].projection.weight, weight)


def test_a_loss_that_occurs_twice_has_two_names(monkeypatch):
    """Also where its name has an underscore."""
    monkeypatch.setitem(LOSSES, "scaled_cosine", cosine_distance_sum)
    matches = [
        Match("scaled_cosine", layers="last"),
        Match("cosine", layers="last"),
        Match("scaled_cosine", layers="last"),
    ]
    assert list(Objective(tiny_bert(), Losses(cosine=0.0, match=matches), 1).matches) == [
        "scaled_cosine",
        "cosine",
        "scaled_cosine_2",
    ]
