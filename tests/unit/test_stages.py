"""Test the stages of a recipe: how they are read, which steps they have, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_distill.recipe import Data, Losses, Match, Recipe, Stage
from ds_distill.stages import span_at, spans_of
from ds_distill.utils.errors import UserError

YAML = """
losses: {kl: 4}
training: {stage_schedule: run}
stages:
  - share: 0.25
    losses: {kl: 0, mlm: 0, cosine: 0, match: [{loss: mse, layers: [[0, 1]]}]}
    learnable: [0]
    teacher_forced: on
  - {share: 0.5, learnable: [embeddings, head, 1]}
  - {share: 0.25, learning_rate: 1e-4}
"""


def test_a_recipe_reads_its_stages(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(YAML)
    recipe = Recipe.load(file)
    first, second, third = recipe.stages
    assert first == Stage(
        0.25,
        {"kl": 0.0, "mlm": 0.0, "cosine": 0.0, "match": [Match("mse", layers=[(0, 1)])]},
        [0],
        teacher_forced=True,
    )
    assert second.learnable == ["embeddings", "head", 1] and third.learning_rate == 1e-4
    assert third.peak_rate(5e-4) == 1e-4 and second.peak_rate(5e-4) == 5e-4
    assert Stage(0.5, learning_rate=0.0).peak_rate(5e-4) == 0, "a rate that was given, not a missing one"
    assert recipe.trained_losses(second) == Losses(kl=4.0)
    assert [share for share, _ in recipe.losses_by_share()] == [0.25, 0.5, 0.25]
    (tmp_path / "longer.yaml").write_text("config: r.yaml\ndata: {clean_fraction: 1}\n")
    longer = Recipe.load(tmp_path / "longer.yaml")
    assert longer.stages == recipe.stages and longer.trained_losses(third) == Losses(kl=0.0, mlm=0.0)
    identity = recipe.identity()
    assert identity["stages"][0]["losses"]["match"][0]["layers"] == [[0, 1]] and identity != longer.identity()
    assert "stages" not in Recipe().identity() and "stages" not in Recipe().as_dict()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 10**7))
def test_every_step_belongs_to_one_stage(weights, steps):
    recipe = Recipe(stages=[Stage(weight / sum(weights)) for weight in weights])
    recipe.check()
    try:
        spans = spans_of(recipe, steps)
    except UserError as error:
        assert "would have none" in str(error) and steps * min(weights) < sum(weights)
        return
    assert spans[0].first == 0 and spans[-1].end == steps
    assert all(one.end == two.first for one, two in zip(spans, spans[1:], strict=False))
    for span, weight in zip(spans, weights, strict=True):
        assert abs(span.end - span.first - steps * weight / sum(weights)) <= 1
        assert span_at(spans, span.first) == span_at(spans, span.end - 1) == span
    assert span_at(spans, steps) == spans[-1]


LAYERS_ONLY = {"kl": 0, "mlm": 0, "cosine": 0, "match": [{"loss": "mse"}]}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"share": 0.5}, {"share": 0.6}], r"stages: the shares \[0\.5, 0\.6\] sum to 1\.1; they must sum to 1"),
        ([{"share": 0}, {"share": 1}], r"stages\[0\]\.share = 0\.0: must be above 0"),
        ([{"share": 1.5}], r"stages\[0\]\.share = 1\.5: must be between 0 and 1|sum to 1\.5"),
        ([{"share": 1, "learnable": []}], r"stages\[0\]\.learnable = \[\]: give all, or a list"),
        ([{"share": 1, "learnable": [0, 0]}], r"stages\[0\]\.learnable = \[0, 0\]"),
        ([{"share": 1, "learnable": ["pooler"]}], r"learnable.*pooler"),
        ([{"share": 1, "losses": {"kl": -1}}], r"stages\[0\]\.losses\.kl = -1\.0: must be between 0 and"),
        ([{"share": 1, "losses": {"klt": 1}}], r"losses\.klt: no such key; did you mean kl\?"),
        ([{"share": 1, "loses": {}}], r"loses: no such key; did you mean losses\?"),
        ([{"losses": {}}], r"share is missing"),
        (
            [{"share": 1, "losses": {"kl": 0, "mlm": 0, "cosine": 0}}],
            r"stages\[0\]\.losses\.kl, .* are all 0: nothing would be trained",
        ),
        ([{"share": 1, "teacher_forced": True}], r"stages\[0\]\.learnable = all: .* give a list of student layers"),
        (
            [{"share": 1, "teacher_forced": True, "losses": LAYERS_ONLY, "learnable": [0, "head"]}],
            r"stages\[0\]\.learnable = \[0, 'head'\]: with teacher_forced",
        ),
        (
            [{"share": 1, "teacher_forced": True, "learnable": [0]}],
            r"stages\[0\]\.losses: teacher_forced .* kl and mlm to 0 \(now 5 and 2\)",
        ),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(stages, message):
    with pytest.raises(UserError, match=message):
        Recipe(stages=stages).check()


def test_losses_of_the_recipe_need_train_nothing_where_stages_have_their_own():
    nothing = Losses(kl=0.0, mlm=0.0, cosine=0.0)
    Recipe(losses=nothing, stages=[Stage(1.0, {"mlm": 1.0})]).check()
    with pytest.raises(UserError, match=r"data\.clean_fraction = 1: .* stages\[0\]\.losses\.mlm have no tokens"):
        Recipe(losses=nothing, data=Data(clean_fraction=1.0), stages=[Stage(1.0, {"mlm": 1.0})]).check()


def test_stages_in_words():
    recipe = Recipe(stages=[Stage(0.5, LAYERS_ONLY, [0, "head"]), Stage(0.5, quantize="onnx-int8")])
    recipe.check()
    first, second = spans_of(recipe, 1001)
    assert first.describe() == "steps 1 to 500: 1 × mse; trains layer 0 and head"
    assert second.describe() == (
        "steps 501 to 1,001: 5 × KL + 2 × masked LM + 1 × cosine; trains everything, quantization-aware for onnx-int8"
    )
    assert math.isclose(sum(share for share, _ in recipe.losses_by_share()), 1)
