"""Test relations that are averaged over several teachers, against a float64 closed form."""

import pytest
import torch

from benchmarks.reference.closed_form import relation_kl
from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.losses.match_checks import HeadSizes, resolve_heads
from ds_distill.losses.objective import Objective
from ds_distill.losses.terms import make_matches
from ds_distill.models.ensemble import Ensemble
from ds_distill.models.intermediates import Site, run_encoder
from ds_distill.models.layer_shapes import LayerShape, set_layer_shapes
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher, needed_part
from ds_distill.recipe import Losses, Match
from ds_distill.training.matched_evaluation import evaluate_matches
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import padding_mask, randomised, tiny_bert, tiny_distilbert, tokens

WEIGHTS = (0.5, 0.5, 0.0)
LOSSES = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[Match("relation", of=["query", "value"], layers=[(1, 3)], heads=4)])


def make_run():
    """A student and teachers of other widths and depths, of which the third counts nothing."""
    models = [tiny_bert(4), randomised(tiny_bert(2, hidden_size=16), 3), randomised(tiny_distilbert(3), 4)]
    models = [model.double() for model in models]
    student = randomised(build_student(models[0], init_layers=[0, 3], dropout=0.0, head=False), 5).double()
    further = [model.config for model in models[1:]]
    objective = Objective(student, LOSSES, 1, models[0].config, [0, 3], further)
    teachers = [Teacher(needed_part(model, (), head=True)) for model in models]
    return objective, Ensemble(teachers, WEIGHTS, objective.averaged_sites)


def split(vectors):
    return vectors.unflatten(-1, (4, -1)).transpose(1, 2)


def test_the_mean_of_the_distributions_is_matched():
    objective, ensemble = make_run()
    ids, mask = tokens(), padding_mask()
    assert set(objective.averaged_sites) == {Site("query", 3), Site("value", 3)} == set(objective.teacher_sites)
    targets = ensemble.targets(ids, mask, sites=objective.teacher_sites)
    counts = TokenCounts(int(mask.sum()), 0)
    loss, sums = objective(ids, mask, torch.full_like(ids, -100), counts, targets)
    expected = 0.0
    with torch.no_grad():
        for name in ("query", "value"):
            own = split(run_encoder(objective.model, ids, mask, sites=[Site(name, 1)])[1][Site(name, 1)])
            # the last layer of each
            sites = [Site(name, layer) for layer in (3, 1)]
            others = [
                split(teacher.targets(ids, mask, sites=[site]).states[site])
                for teacher, site in zip(ensemble.teachers, sites, strict=False)
            ]
            pairs = [(vectors, vectors) for vectors in others]
            expected += relation_kl((own, own), pairs, WEIGHTS[:2], mask)[0].item() / 4
    assert sums[0].item() == pytest.approx(expected, rel=1e-9) and expected > 0.1
    assert loss.item() == pytest.approx(expected / counts.real, rel=1e-9)
    figures = evaluate_matches(
        objective, objective, ensemble, [Batch(ids, torch.full_like(ids, -100), mask)], torch.device("cpu")
    )
    assert figures["relation"] == pytest.approx(expected / counts.real, rel=1e-9)


def test_heads_fit_all_teachers():
    sizes = [HeadSizes(width, heads=4) for width in (384, 768, 1024)]
    assert resolve_heads(Match("relation"), sizes[0], sizes[1:], "m") == 32
    with pytest.raises(UserError, match="heads = 48: does not divide .* the teacher's of 768 and 1024; give one of 1,"):
        resolve_heads(Match("relation", heads=48), sizes[0], sizes[1:], "m")
    # a term of hidden states is over the first teacher alone
    losses = Losses(cosine=0.0, match=[Match("mse")])
    further = [tiny_bert(2, hidden_size=20, num_attention_heads=5).config]
    assert not make_matches(losses, tiny_bert(2).config, tiny_bert(4).config, [0, 3], further)["mse"].averages_teachers


def test_the_heads_of_a_further_teacher_are_those_of_its_layer_at_the_same_share_of_its_depth():
    first, other = tiny_bert(4).config, tiny_bert(2).config
    set_layer_shapes(other, [LayerShape(0, 64), LayerShape(3, 64)])
    losses = Losses(cosine=0.0, match=[Match("relation", layers=[(0, 2)])])  # the third of four: the second of two
    (term,) = make_matches(losses, tiny_bert(2).config, first, None, [other]).values()
    assert (first.hidden_size // first.num_attention_heads * 3) % term.heads[0] == 0
    losses = Losses(cosine=0.0, match=[Match("relation", layers=[(0, 1)])])
    with pytest.raises(UserError, match="the teacher's layer 0 has no attention heads left"):
        make_matches(losses, tiny_bert(2).config, first, None, [other])
