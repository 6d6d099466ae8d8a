"""Test several teachers: the mean of their logits against float64 closed forms, and their states side by side."""

import pytest
import torch

from ds_distill.data.batch import TokenCounts
from ds_distill.losses.objective import Objective
from ds_distill.models.ensemble import Ensemble, counterparts
from ds_distill.models.intermediates import LAST, LAST_HIDDEN, Site
from ds_distill.models.precision import common_dtype
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import padding_mask, randomised, tiny_bert, tiny_distilbert, tokens

WEIGHTS = (0.5, 0.3, 0.2)


def make_teachers() -> list[Teacher]:
    """Teachers of different widths, depths and families."""
    models = [tiny_bert(4), randomised(tiny_bert(2, hidden_size=16), 3), randomised(tiny_distilbert(3), 4)]
    return [Teacher(model.double()) for model in models]


def mean_logits(teachers, ids, mask):
    with torch.no_grad():
        each = [teacher.model(ids, attention_mask=mask).logits for teacher in teachers]
    return sum(weight * logits for weight, logits in zip(WEIGHTS, each, strict=True))


def test_one_product_gives_the_mean_of_the_logits():
    teachers, ids, mask = make_teachers(), tokens(), padding_mask()
    targets = Ensemble(teachers, WEIGHTS).targets(ids, mask)
    logits = torch.nn.functional.linear(targets.decoder_input, targets.decoder_weight, targets.decoder_bias)
    assert torch.allclose(logits[mask], mean_logits(teachers, ids, mask)[mask], rtol=1e-12, atol=1e-12)
    assert targets.decoder_input.shape[-1] == 32 + 16 + 32 and targets.teacher_weights == WEIGHTS
    assert torch.equal(targets.states[LAST_HIDDEN], teachers[0].targets(ids, mask).states[LAST_HIDDEN])


@pytest.mark.parametrize("kl_tokens", ["all", "masked"])
def test_the_fused_loss_is_the_plain_one_of_the_mean(kl_tokens):
    teachers, ids, mask = make_teachers(), tokens(), padding_mask()
    losses = Losses(kl=5.0, mlm=2.0, cosine=1.0, temperature=2.0, kl_tokens=kl_tokens)
    student = build_student(teachers[0].model, dropout=0.0).double()
    objective = Objective(student, losses, 1, teachers[0].config)
    labels = torch.where((torch.arange(12) % 4 == 1) & mask, ids, -100)
    counts = TokenCounts(int(mask.sum()), int((labels >= 0).sum()))
    targets = Ensemble(teachers, WEIGHTS).targets(ids, mask, sites=objective.teacher_sites)
    loss, _ = objective(ids, mask, labels, counts, targets)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in objective.named_parameters()}
    objective.zero_grad()

    logits = student(ids, attention_mask=mask).logits
    at = mask if kl_tokens == "all" else labels >= 0
    teacher = (mean_logits(teachers, ids, mask)[at] / 2.0).log_softmax(-1)
    kl = 4.0 * (teacher.exp() * (teacher - (logits[at] / 2.0).log_softmax(-1))).sum() / int(at.sum())
    mlm = torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0])
    last = student(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    cosine = 1 - torch.nn.functional.cosine_similarity(last, targets.states[LAST_HIDDEN], dim=-1)[mask].mean()
    plain = 5.0 * kl + 2.0 * mlm + cosine
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    for name, parameter in objective.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12), name


def test_clean_sequences_have_no_logits_of_any_teacher():
    """And where a stage compares no logits, only those run of whom something is recorded."""
    teachers, ids, mask, rows = make_teachers(), tokens(), padding_mask(), torch.tensor([0, 2])
    sites = (Site("value", 1), LAST_HIDDEN)
    ensemble = Ensemble(teachers, WEIGHTS, averaged=sites[:1])
    targets = ensemble.targets(ids, mask, sites=sites, masked_rows=rows)
    logits = torch.nn.functional.linear(targets.decoder_input, targets.decoder_weight, targets.decoder_bias)
    expected = mean_logits(teachers, ids, mask)[rows]
    assert torch.allclose(logits[mask[rows]], expected[mask[rows]], rtol=1e-12, atol=1e-12)
    assert len(targets.states[LAST_HIDDEN]) == len(targets.others[0][sites[0]]) == len(ids)

    ran = []
    for number, teacher in enumerate(teachers):
        encoder = teacher.model.get_submodule(teacher.model.base_model_prefix)
        encoder.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    within = ensemble.targets(ids, mask, sites=sites, head=False)
    assert ran == [0, 1, 2] and within.decoder_input is None and within.teacher_weights == WEIGHTS
    assert all(torch.equal(within.others[k][sites[0]], targets.others[k][sites[0]]) for k in (0, 1))
    ran.clear()
    assert ensemble.targets(ids, mask, sites=sites[1:], head=False).others == ({}, {}) and ran == [0]


def test_equal_teachers_are_one():
    teacher, ids = Teacher(tiny_bert()), tokens()
    one, two = teacher.targets(ids), Ensemble([teacher, teacher], (0.25, 0.75)).targets(ids)
    logits = [torch.nn.functional.linear(x.decoder_input, x.decoder_weight, x.decoder_bias) for x in (one, two)]
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-5)


def test_others_are_recorded_where_a_term_averages_over_teachers():
    teachers, ids = make_teachers(), tokens()
    sites = (Site("hidden", 1), LAST_HIDDEN)
    targets = Ensemble(teachers, WEIGHTS, averaged=sites[:1]).targets(ids, sites=sites)
    assert [states.keys() for states in targets.others] == [{sites[0]}, {sites[0]}]
    # the second of four layers is the first of two, and the second of three
    for states, teacher, layer in zip(targets.others, teachers[1:], (0, 1), strict=True):
        there = Site("hidden", layer)
        assert torch.equal(states[sites[0]], teacher.targets(ids, sites=[there]).states[there])


def test_layers_at_the_same_share_of_the_depth():
    configs = {depth: tiny_bert(depth).config for depth in (3, 4, 12)}
    sites = [Site("hidden", layer) for layer in (0, 8, 9, 10, LAST)]
    mapped = counterparts(sites, configs[12], configs[4])
    assert [site.layer for site in mapped] == [0, 2, LAST, LAST, LAST]
    assert [site.layer for site in counterparts(sites[:1], configs[3], configs[12])] == [3]
    assert counterparts(sites, configs[12], configs[12]) == tuple(sites)


def test_weights_and_the_format_of_several_teachers():
    assert Losses().weights_of_teachers(4) == (0.25,) * 4
    assert Losses(teacher_weights=[3.0, 1.0]).weights_of_teachers(2) == (0.75, 0.25)
    with pytest.raises(UserError, match=r"losses.teacher_weights = \[1.0\]: there are 2 teachers; give one number"):
        Losses(teacher_weights=[1.0]).weights_of_teachers(2)
    with pytest.raises(UserError, match="not all of them 0"):
        Losses(teacher_weights=[0.0, 0.0]).weights_of_teachers(2)
    assert common_dtype([torch.float16, torch.bfloat16]) == torch.bfloat16
    assert common_dtype([torch.float16, torch.float32]) == torch.float32
    assert common_dtype([torch.float16]) == torch.float16
