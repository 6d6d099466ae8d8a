"""Test what all stages of a recipe need together of the student and of several teachers."""

import pytest

from ds_distill.losses.objective import sites_of
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import LAST_HIDDEN, Site
from ds_distill.models.student_plan import plan_student
from ds_distill.preflight.stages import objectives_of_stages
from ds_distill.recipe import Data, Losses, Match, Recipe, Stage
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import tiny_bert

WITHIN = {"kl": 0.0, "mlm": 0.0, "cosine": 0.0}


def objectives(*stages: Stage, **options):
    teachers = [tiny_bert(4).config, tiny_bert(2, hidden_size=16).config]
    recipe = Recipe(stages=list(stages), **options)
    recipe.check()
    layer_map, config = plan_student(teachers[0])
    return recipe, objectives_of_stages(recipe, config, layer_map, teachers)


def test_a_student_has_a_head_where_a_later_stage_needs_one():
    relation = Match("relation", of="value", layers=[(0, 2)])
    forced = Stage(0.2, {**WITHIN, "match": [Match("mse", layers=[(0, 1), (1, 3)])]}, [1], teacher_forced=True)
    recipe, (first, second, third) = objectives(Stage(0.4, {**WITHIN, "match": [relation]}), forced, Stage(0.4))
    assert recipe.need_vocabulary and recipe.compares_logits and recipe.need_teacher
    for objective in (first, second, third):
        assert objective.has_head and objective.vocabulary == (objective is third)
        head = [p for name, p in objective.model.named_parameters() if name.startswith("vocab_")]
        assert all(p.requires_grad == objective.vocabulary for p in head)
    assert list(first.weights) == ["relation"] and list(third.weights) == ["kl", "mlm", "cosine"]
    # above what is compared nothing waits for a gradient
    assert first.highest == 0 and not any(
        p.requires_grad for p in get_family(first.model).get_layers(first.model)[1].parameters()
    )
    needed, averaged = sites_of([first, second, third])
    assert averaged == (Site("value", 2),)  # of which alone the second teacher is asked
    assert set(needed) == {Site("value", 2), Site("hidden", 1), LAST_HIDDEN}


@pytest.mark.parametrize(
    "options", [{"losses": Losses(**WITHIN)}, {"data": Data(clean_fraction=1.0), "losses": Losses(cosine=0.0)}]
)
def test_a_student_without_a_stage_that_needs_a_head_is_bare(options):
    stages = [Stage(0.5, {"match": [Match("relation")]}), Stage(0.5, {"match": [Match("mse")]})]
    recipe, found = objectives(*stages, **options)
    assert not recipe.need_vocabulary and not any(objective.has_head for objective in found)


def test_the_mean_of_teachers_is_that_of_the_whole_run():
    with pytest.raises(UserError, match=r"stages\[1\]\.losses\.teacher_weights: .* give losses\.teacher_weights"):
        objectives(Stage(0.5), Stage(0.5, {"teacher_weights": [1.0, 2.0]}))
