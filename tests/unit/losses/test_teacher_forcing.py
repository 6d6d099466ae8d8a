"""Test local regression: a student layer on the teacher's states, and what of a student a stage leaves as it is."""

from dataclasses import replace

import pytest
import torch

from ds_distill.losses.objective import Objective
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import Site
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match, Recipe, Stage
from ds_distill.stages import spans_of
from ds_distill.training.stages import Stages, _find_kept_terms
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import FAMILIES, padding_mask, tiny_albert, tiny_bert, tiny_deberta, tokens

LAYERS_ONLY = {"kl": 0.0, "mlm": 0.0, "cosine": 0.0, "match": [Match("mse", layers="mapped")]}
MAP = [0, 2, 4]  # the teacher's layers that the student's three start from


def objective_of(stage: Stage, teacher=None, **student) -> tuple[Objective, Teacher]:
    teacher = teacher or tiny_bert(6)
    model = build_student(teacher, init_layers=MAP, dropout=0.0, **student)
    recipe = Recipe(stages=[stage])
    recipe.check()
    stages = Stages(
        spans_of(recipe, 10), model, teacher.config, lambda m, losses: Objective(m, losses, 1, teacher.config, MAP)
    )
    return stages.begin(0, None), Teacher(teacher)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 2]])
def test_each_layer_reads_the_teachers_input_to_its_span(layers, documents):
    """Losses and gradients are those of blocks that are called one by one on transformers' own hidden states."""
    objective, teacher = objective_of(Stage(1.0, LAYERS_ONLY, layers, teacher_forced=True))
    ids, mask = tokens(), padding_mask()
    given = mask
    if documents:
        numbers = torch.where(mask, (torch.arange(ids.shape[1]) >= 3).long(), -1)
        given = (numbers[:, None, :, None] == numbers[:, None, None, :]) & mask[:, None, None, :]
        given[..., 0] |= ~mask[:, None, :]
    targets = teacher.targets(ids, given, sites=objective.teacher_sites, head=False)
    loss, sums = objective(ids, given, torch.full_like(ids, -100), (int(mask.sum()), 0), targets)
    loss.backward()
    got = {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}
    objective.zero_grad()
    with torch.no_grad():
        states = teacher.model.bert(ids, attention_mask=given, output_hidden_states=True).hidden_states
    blocks, total = get_family(objective.model).get_layers(objective.model), torch.zeros(())
    square = given if given.dim() == 4 else mask[:, None, None, :].expand(-1, 1, ids.shape[1], ids.shape[1])
    for layer in layers:
        began = states[0] if layer == 0 else states[MAP[layer - 1] + 1]
        error = (blocks[layer](began, square) - states[MAP[layer] + 1]).square().mean(-1)
        total = total + (error * mask).sum()
    (total / mask.sum()).backward()
    assert sums.tolist() == pytest.approx([total.item()], rel=1e-5)
    wanted = {name: p.grad for name, p in objective.model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys() and {name.split(".")[3] for name in got} == {str(layer) for layer in layers}
    for name in got:
        assert torch.allclose(got[name], wanted[name], rtol=1e-4, atol=1e-7), name
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == {f"model.{name}" for name in got}


def test_layers_that_need_more_than_states_are_not_run_one_by_one():
    for make, shared in (
        (tiny_deberta, "a deberta-v2 .* share relative positions"),
        (tiny_albert, "an? albert .* share"),
    ):
        with pytest.raises(UserError, match=rf"stages\[0\]\.teacher_forced: the layers of {shared}"):
            objective_of(Stage(1.0, LAYERS_ONLY, [0], teacher_forced=True), make(6))
    objective_of(Stage(1.0, LAYERS_ONLY, [0]), tiny_deberta(6))


@pytest.mark.parametrize("make", [make for make in FAMILIES if make not in (tiny_albert, tiny_deberta)])
def test_a_copy_of_the_teacher_has_no_error_in_any_family(make):
    """Also where the last layer's output is the encoder's, and evaluation runs the whole model."""
    teacher = make().eval()
    depth = get_family(teacher).dims(teacher.config).depth
    student = build_student(teacher, init_layers=list(range(depth)), dropout=0.0)
    stage = Stage(1.0, LAYERS_ONLY, list(range(depth)), teacher_forced=True)
    recipe = Recipe(stages=[stage])
    recipe.check()

    def make_objective(model, losses):
        return Objective(model, losses, 1, teacher.config, list(range(depth)))

    objective = Stages(spans_of(recipe, 10), student, teacher.config, make_objective).begin(0, None)
    frozen = Teacher(teacher)
    ids, mask = tokens(), padding_mask()
    labels = torch.where((torch.arange(ids.shape[1]) % 4 == 1) & mask, ids, -100)
    targets = frozen.targets(ids, mask, sites=objective.teacher_sites, head=False)
    loss, _ = objective(ids, mask, labels, (int(mask.sum()), 9), targets)
    assert loss.item() < 1e-8
    with torch.no_grad():
        _, results = objective.eval()(ids, mask, labels, mode="evaluate")
        _, expected = Objective(teacher, Losses().without_teacher(), 1).eval()(ids, mask, labels, mode="evaluate")
    assert torch.allclose(results, expected, atol=1e-4)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize(("of", "layer"), [("embeddings", 0), ("value", 0), ("value", 1)])
def test_every_parameter_that_a_term_leaves_to_train_gets_a_gradient_and_no_other_would(make, of, layer):
    """ZeRO 3 would wait for the others, and AdamW decay them: a bias that layers read and embeddings do not, and what
    comes after the values of a layer.
    """
    teacher = Teacher(make())
    match = Match("mse", of=of) if of == "embeddings" else Match("relation", of=of, layers=[(layer, 1)])
    losses = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[match])
    objective = Objective(build_student(teacher.model, num_layers=2), losses, 1, teacher.config)
    ids = tokens()
    targets = teacher.targets(ids, sites=objective.teacher_sites, head=False)
    objective(ids, None, torch.full_like(ids, -100), (ids.numel(), 0), targets)[0].backward()
    trained = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    assert trained and all(gradient is not None and gradient.any() for gradient in trained.values())
    for parameter in objective.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    objective(ids, None, torch.full_like(ids, -100), (ids.numel(), 0), targets)[0].backward()
    reached = {name for name, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == trained.keys()


def test_deviations_are_those_of_the_pairs_that_a_stage_compares():
    """The teacher does not run beyond them."""
    match = Match("mse", layers=[(0, 1), (1, 2), (2, 3)], normalize=True)
    objective, _ = objective_of(Stage(1.0, {**LAYERS_ONLY, "match": [match]}, [1], teacher_forced=True))
    assert objective.divided_sites == {Site("hidden", 2)} < set(objective.teacher_sites)


def learnable(stage: Stage, **options) -> set[str]:
    objective, _ = objective_of(stage, **options)
    family, parts = objective.family, set()
    for name, parameter in objective.model.named_parameters():
        if parameter.requires_grad:
            layer = name.removeprefix(f"{family.layers}.").split(".")[0]
            inside = name.startswith(f"{family.encoder}.")
            parts.add(layer if layer.isdigit() else "embeddings" if inside else "head")
    return parts


def test_what_a_stage_trains():
    low = {**LAYERS_ONLY, "match": [Match("mse", layers=[(1, 3)])]}
    assert learnable(Stage(1.0)) == {"0", "1", "2", "embeddings", "head"}
    assert learnable(Stage(1.0, LAYERS_ONLY)) == {"0", "1", "2", "embeddings"}  # no term reaches the head
    assert learnable(Stage(1.0, low)) == {"0", "1", "embeddings"}  # nor a layer above
    assert learnable(Stage(1.0, {}, ["head", 2])) == {"2", "head"}
    assert learnable(Stage(1.0, low, ["embeddings"])) == {"embeddings"}
    objective, _ = objective_of(Stage(1.0, {}, ["embeddings"]), freeze_positions=True)
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert "model.distilbert.embeddings.word_embeddings.weight" in trained
    assert "model.distilbert.embeddings.position_embeddings.weight" not in trained  # the recipe has frozen it


@pytest.mark.parametrize(
    ("stage", "student", "message"),
    [
        (Stage(1.0, {}, [3]), {}, r"stages\[0\]\.learnable: layer 3: the student has 3 layers, 0 to 2"),
        (
            Stage(1.0, {**LAYERS_ONLY, "match": [Match("mse", layers=[(0, 1)])]}, [1]),
            {},
            r"stages\[0\]\.learnable: layer 1: the terms of this stage look at layers 0 to 0 alone",
        ),
        (
            Stage(1.0, LAYERS_ONLY, [0], teacher_forced=True),
            {"hidden_size": 16},
            r"stages\[0\]\.teacher_forced: a student layer of width 16 cannot read the teacher's states of width 32",
        ),
        (
            Stage(1.0, {**LAYERS_ONLY, "cosine": 1.0}, [0], teacher_forced=True),
            {},
            r"the term cosine compares none of the learnable layers \[0\]|pair student layer 2 with two layers",
        ),
        (
            Stage(1.0, {**LAYERS_ONLY, "match": [Match("mse", layers=[(1, 3)])]}, [1], teacher_forced=True),
            {},
            r"no term pairs student layer 0 with a layer of the teacher, which is where the span of .* layer 1 begins",
        ),
        (
            Stage(1.0, {**LAYERS_ONLY, "match": [Match("mse", layers=[(0, 3), (1, 3)])]}, [1], teacher_forced=True),
            {},
            r"spans must follow each other",
        ),
    ],
)
def test_a_stage_that_does_not_fit_is_refused(stage, student, message):
    with pytest.raises(UserError, match=message):
        objective_of(stage, **student)


def test_a_term_goes_on_whatever_its_name_and_its_weight_are():
    own = Match("cosine", layers=[(0, 1)])
    before = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[own, Match("mse", layers=[(0, 2)])]).matched_terms()
    now = Losses(cosine=1.0, match=[replace(own, weight=5.0), Match("mse", layers=[(1, 2)])]).matched_terms()
    assert list(now) == ["cosine", "cosine_2", "mse"]
    assert _find_kept_terms(before, now) == {"cosine_2": "cosine"}
