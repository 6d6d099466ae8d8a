"""Test the terms between what lies inside the models, and their gradients, through the whole objective in float64.

Student and teacher differ in width, heads and depth. The expected figures are those of the plain form.
"""

import pytest
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

from benchmarks.reference.closed_form import relation_kl, relative
from benchmarks.reference.matching import attention_loss, hidden_loss, inner_states, relation_loss
from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.losses.head_terms import RelationLoss
from ds_distill.losses.layer_pairs import resolve_pairs
from ds_distill.losses.match_checks import HeadSizes, resolve_heads
from ds_distill.losses.objective import Objective
from ds_distill.losses.terms import make_matches
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import LAST, LAST_HIDDEN, Site, run_encoder
from ds_distill.models.layer_shapes import LayerShape, set_layer_shapes
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import FAMILIES, padding_mask, randomised, tiny_bert, tokens

WIDTH = 24


def tiny_student(heads: int) -> DistilBertForMaskedLM:
    """Make a student of another width and depth than tiny_bert(4)."""
    sizes = {"dim": WIDTH, "n_layers": 2, "n_heads": heads, "hidden_dim": 40, "max_position_embeddings": 24}
    return randomised(
        DistilBertForMaskedLM(DistilBertConfig(vocab_size=101, **sizes, dropout=0.0, attention_dropout=0.0)), seed=2
    )


def batch_of(layout: str) -> Batch:
    """Make a batch that is full, padded, packed with documents apart, or both of the latter."""
    ids, mask = tokens(), padding_mask()
    documents = torch.div(torch.arange(12), 5, rounding_mode="floor").expand(len(ids), -1).clone()
    documents[0] = 0
    padded = "padded" in layout
    documents[~mask & padded] = -1
    return Batch(ids, torch.full_like(ids, -100), mask if padded else None, documents if "packed" in layout else None)


def run_objective(match: Match, batch: Batch, heads: int = 2, checkpointing: bool = False):
    """Return (the objective, its teacher, loss, sum of the term) in float64, after a backward."""
    teacher = Teacher(tiny_bert(4).double())
    losses = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[match])
    objective = Objective(tiny_student(heads), losses, 2, teacher.config, [0, 2]).double().train()
    if checkpointing:
        objective.model.gradient_checkpointing_enable()
    objective.divide_by({site: deviation(site) for site in objective.divided_sites})
    targets = teacher.targets(batch.input_ids, batch.attention_mask, sites=objective.teacher_sites)
    inputs = batch.input_ids, batch.attention_mask, batch.labels
    loss, sums = objective(*inputs, TokenCounts(50, 1), targets, document_ids=batch.document_ids)
    loss.backward()
    return objective, teacher, loss, sums[0]


def deviation(site: Site) -> torch.Tensor:
    generator = torch.Generator().manual_seed(site.layer + 5)
    return torch.rand(32, generator=generator, dtype=torch.float64) + 0.5


def plain(match: Match, pairs, objective: Objective, teacher: Teacher, batch: Batch, heads: int) -> torch.Tensor:
    """Return the term's mean over real tokens in its plain form, from copies whose gradients are free."""
    real = torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.token_mask is None else batch.token_mask
    own = inner_states(objective.model, batch.input_ids, batch.attention_mask)
    with torch.no_grad():
        wanted = inner_states(teacher.model, batch.input_ids, batch.attention_mask)
    total = 0.0
    for low, high in pairs:
        for quantity in match.quantities:
            if quantity == "embeddings" and (low, high) != pairs[0]:
                continue  # they are compared once
            if quantity in ("hidden", "embeddings"):
                site = (low, high) if quantity == "hidden" else (0, 0)
                h, g = objective.matches[match.loss].projection(own[quantity][site[0]]), wanted[quantity][site[1]]
                if match.normalize:
                    divisor = deviation(Site(quantity, LAST if quantity == "hidden" and high == 3 else site[1]))
                    h, g = h / divisor, g / divisor
                total = total + hidden_loss(match.loss, h, g, real)
                continue
            a, b = ("query", "key") if quantity == "query_key" else (quantity, quantity)
            loss = attention_loss if match.loss == "attention" else relation_loss
            total = total + loss(
                (own[a][low], own[b][low]), (wanted[a][high], wanted[b][high]), heads, real, batch.document_ids
            )
    return total


MATCHES = [
    (Match("relation", layers=[(1, 2)], weight=3.0), 2, 2),
    (Match("relation", of=["value", "query_key"], layers=[(1, 3), (0, 1)], heads=4, weight=3.0), 2, 4),
    (Match("relation", of="query_key", layers="last", weight=3.0), 4, 4),
    (Match("attention", layers="uniform", weight=3.0), 4, 4),
    (Match("mse", of=["embeddings", "hidden"], layers="span_ends", normalize=True, weight=3.0), 2, 0),
    (Match("mse", of="embeddings", weight=3.0), 2, 0),
    (Match("cosine", layers="mapped", normalize=True, weight=3.0), 2, 0),
]
PAIRS = {"uniform": [(0, 1), (1, 3)], "span_ends": [(0, 1), (1, 3)], "mapped": [(0, 0), (1, 2)], "last": [(1, 3)]}


@pytest.mark.parametrize("layout", ["full", "padded", "packed and padded"])
@pytest.mark.parametrize(("match", "attention_heads", "heads"), MATCHES)
def test_value_and_gradient_are_those_of_the_plain_form(match, attention_heads, heads, layout):
    batch = batch_of(layout)
    objective, teacher, loss, term_sum = run_objective(match, batch, attention_heads)
    assert term_sum.dtype == torch.float64
    gradients = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    objective.zero_grad()
    pairs = PAIRS[match.layers] if isinstance(match.layers, str) else match.layers
    pairs = [(0, 0)] if match.of == "embeddings" else pairs
    real = batch.input_ids.numel() if batch.token_mask is None else int(batch.token_mask.sum())
    expected = plain(match, pairs, objective, teacher, batch, heads) * real
    assert term_sum.item() == pytest.approx(expected.item(), rel=1e-9)
    assert loss.item() == pytest.approx(2 * 3.0 * expected.item() / 50, rel=1e-9), "the mean over all ranks' tokens"
    (expected * 2 * 3.0 / 50).backward()
    wanted = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert wanted, "something is trained"
    for name, gradient in wanted.items():
        assert relative(gradients[name], gradient) <= 1e-8 or gradients[name].norm() <= 1e-12, name
    for name in gradients.keys() - wanted.keys():  # the vocabulary's, of weight 0
        assert not gradients[name].any(), name


@pytest.mark.parametrize(("match", "attention_heads", "heads"), MATCHES[1:4:2])
def test_parts_of_a_batch_add_up_and_recomputed_layers_change_nothing(match, attention_heads, heads):
    batch = batch_of("packed and padded")
    objective, _, loss, _ = run_objective(match, batch, attention_heads, checkpointing=True)
    whole = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    parts = [
        Batch(*(None if x is None else x[part] for x in list(vars(batch).values())[:4]))
        for part in (slice(0, 1), slice(1, None))
    ]
    runs = [run_objective(match, part, attention_heads) for part in parts]
    assert loss.item() == pytest.approx(sum(run[2].item() for run in runs), rel=1e-9)
    for name, gradient in whole.items():
        other = sum(dict(run[0].named_parameters())[name].grad for run in runs)
        assert relative(other, gradient) <= 1e-8 or gradient.norm() <= 1e-12, name


def test_a_student_that_is_its_teacher_has_no_loss():
    teacher = Teacher(tiny_bert(4).double())
    student = build_student(teacher.model, init_layers=[0, 1, 2, 3], dropout=0.0).double()
    match = [
        Match("relation", of=["query", "query_key"]),
        Match("attention"),
        Match("mse", of=["hidden", "embeddings"]),
    ]
    objective = Objective(student, Losses(0.0, 0.0, 0.0, match=match), 1, teacher.config, [0, 1, 2, 3])
    ids, mask = tokens(), padding_mask()
    targets = teacher.targets(ids, mask, sites=objective.teacher_sites)
    _, sums = objective(ids, mask, torch.full_like(ids, -100), TokenCounts(1, 1), targets)
    assert sums.abs().max() < 1e-9


def test_relations_of_several_teachers_are_averaged_as_distributions():
    """The teachers' widths differ from each other and from the student's."""
    generator, mask = torch.Generator().manual_seed(1), padding_mask()
    match = RelationLoss(Match("relation", of=["value", "query_key"]), [(0, 1)], heads=[4])
    own, *teachers = (
        {Site(name, layer): torch.randn(*mask.shape, width, generator=generator) for name in ("query", "key", "value")}
        for layer, width in ((0, 16), (1, 24), (1, 8))
    )
    found = match(own, teachers[0], mask, None, teachers[1:], [3.0, 1.0])
    heads = [
        {site: x.unflatten(-1, (4, -1)).transpose(1, 2) for site, x in states.items()} for states in (own, *teachers)
    ]
    expected = 0.0
    for a, b in (("value", "value"), ("query", "key")):
        student, *pairs = ((states[Site(a, i)], states[Site(b, i)]) for states, i in zip(heads, (0, 1, 1), strict=True))
        expected += relation_kl(student, pairs, [0.75, 0.25], mask)[0].item() / 4
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", FAMILIES)
def test_only_what_is_asked_for_is_recorded(make):
    model, ids, mask = make().train(), tokens(), padding_mask()
    sites = [Site("query", 0), Site("key", 2), Site("value", 2), Site("embeddings", 0), Site("hidden", 1), LAST_HIDDEN]
    model.eval()
    hidden, states = run_encoder(model, ids, mask, sites=sites)
    expected = inner_states(model, ids, mask)
    assert list(states) and states.keys() == set(sites) and torch.equal(hidden, states[LAST_HIDDEN])
    for site, value in states.items():
        assert value.requires_grad
        torch.testing.assert_close(value, expected[site.quantity][site.layer], rtol=1e-6, atol=1e-6)
    _, states = run_encoder(model, ids, mask, sites=[Site("key", 2)])
    assert list(states) == [Site("key", 2)] and run_encoder(model, ids, mask)[1] == {}
    hooks = [module for module in model.modules() if "recording_slot" in vars(module)]
    layers, paths = get_family(model).get_layers(model), get_family(model).projections
    places = get_family(model).layer_places(model.config)
    assert set(hooks) == {layers[places[i]].get_submodule(paths[kind]) for i, kind in ((0, 0), (2, 1), (2, 2))}
    assert all(not module.recording_slot.outputs for module in hooks), "nothing stays"


def test_named_pairs():
    assert resolve_pairs("mapped_last", 3, 6, [1, 2, 4]) == [(LAST, 4)]
    assert resolve_pairs("span_ends", 3, 6, [1, 2, 4]) == [(0, 1), (1, 3), (LAST, LAST)]
    assert resolve_pairs("span_ends", 4, 12, [0, 3, 6, 9]) == resolve_pairs("uniform", 4, 12, None)
    assert resolve_pairs("uniform", 4, 12, None) == [(0, 2), (1, 5), (2, 8), (LAST, LAST)]


@pytest.mark.parametrize(
    ("match", "message"),
    [
        (
            {"loss": "relatoin"},
            r"\[0\].loss = relatoin: no such loss; did you mean relation\? \(cosine, mse, relation, at",
        ),
        ({"of": []}, r"\[0\].of is empty: give query or key or value or query_key, or leave it out"),
        ({"of": "hidden"}, r"\[0\].of = hidden: the loss relation compares query or key or value or query_key; give"),
        (
            {"loss": "mse", "of": ["hidden", "value"]},
            r"\[0\].of = value: the loss mse compares hidden or embeddings; gi",
        ),
        ({"loss": "attention", "of": "query"}, r"\[0\].of = query: the loss attention compares query_key; give that"),
        ({"of": ["key", "key"]}, r"\[0\].of names key twice; name it once, and give losses.match\[0\].weight instead"),
        ({"loss": "cosine", "heads": 4}, r"\[0\].heads = 4: the loss cosine has no relation heads; leave it out"),
        ({"loss": "attention", "heads": 4}, r"\[0\].heads = 4: the loss attention has no relation heads; leave it out"),
        ({"normalize": True}, r"\[0\].normalize = true: the loss relation compares no hidden states.*; leave it out"),
        (
            {"loss": "mse", "of": "embeddings", "layers": "last"},
            r"\[0\].layers = last: embeddings lie below all layers;",
        ),
        (
            {"heads": 6, "layers": "last"},
            r"\[0\].heads = 6: does not divide the student's width of 24 and the teacher's of 32; give one of "
            "1, 2, 4, 8",
        ),
        (
            {"of": "query_key", "layers": "last"},
            r"\[0\].of = query_key: the student has 2 attention heads and the teacher 4, which must be "
            r"equal to be compared; give losses.match\[0\].heads, a divisor of both widths",
        ),
        (
            {"loss": "attention", "layers": "last"},
            r"give losses.match\[0\].loss = relation with heads, a divisor of both widths",
        ),
        ({"layers": [(2, 0)]}, r"\[0\].layers: student layer 2: the student has 2 layers, 0 to 1"),
        ({"layers": [(0, 4)]}, r"\[0\].layers: teacher layer 4: the teacher has 4 layers, 0 to 3"),
        (
            {"layers": "span_ends"},
            r"\[0\].layers = span_ends: the student does not start from the teacher's layers, so",
        ),
    ],
)
def test_a_term_that_cannot_be_is_refused(match, message):
    losses = Losses(match=[Match(**({"loss": "relation"} | match))])
    with pytest.raises(UserError, match=message):
        make_matches(losses, tiny_student(2).config, tiny_bert(4).config, None)


def test_layers_without_spans_and_depths_without_groups_are_refused():
    with pytest.raises(
        UserError, match=r"m.layers = span_ends: the student starts from the teacher's layers \[2, 1\],"
    ):
        resolve_pairs("span_ends", 2, 4, [2, 1], "m")
    with pytest.raises(
        UserError, match=r"m.layers = uniform: the teacher's 4 layers are not a multiple of the student's"
    ):
        resolve_pairs("uniform", 3, 4, None, "m")
    with pytest.raises(
        UserError, match=r"not a multiple of the student's 4; give pairs such as \[\[0, 0\], \[3, 2\]\]"
    ):
        resolve_pairs("uniform", 4, 3, None, "m")
    for layers in ("mapped", "mapped_last", "span_ends"):
        with pytest.raises(
            UserError,
            match=rf"m.layers = {layers}: the student started from layers \[0, 4\] of .*, but this teacher has 3",
        ):
            resolve_pairs(layers, 2, 3, [0, 4], "m")


@pytest.mark.parametrize(
    ("student", "teacher", "heads"), [(768, 768, 48), (384, 768, 48), (384, 1024, 64), (320, 768, 32)]
)
def test_the_default_number_of_relation_heads(student, teacher, heads):
    sizes = [HeadSizes(width, heads=4) for width in (student, teacher)]
    assert resolve_heads(Match("relation"), sizes[0], sizes[1:], "m") == heads


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_relation_heads_have_whole_pairs_of_dimensions_that_positions_turn(who):
    """Halves of two pairs would make a relation depend on where its tokens are, not only on their distance."""
    sizes = [HeadSizes(48, 4, rotary=who == "student"), HeadSizes(48, 4, rotary=who == "teacher")]
    for of in (["query"], ["key", "value"], ["query_key"]):
        with pytest.raises(UserError, match="heads = 16: does not divide .* even width; give one of 1, 2, 3, 4, 6, 8,"):
            resolve_heads(Match("relation", of=of, heads=16), sizes[0], sizes[1:], "m")
        assert resolve_heads(Match("relation", of=of, heads=8), sizes[0], sizes[1:], "m") == 8
    assert resolve_heads(Match("relation", of=["value"], heads=16), sizes[0], sizes[1:], "m") == 16
    assert (48 // resolve_heads(Match("relation"), sizes[0], sizes[1:], "m")) % 2 == 0


def test_pruned_layers_are_compared_by_the_heads_that_they_have():
    teacher, student = tiny_bert(4), tiny_student(4)
    pruned = [LayerShape(3, 40), LayerShape(2, 40)]
    set_layer_shapes(student.config, pruned)
    match = Match(loss="relation", of=["query"], layers=[[0, 1], [1, 3]])
    (term,) = make_matches(Losses(cosine=0.0, match=[match]), student.config, teacher.config, None).values()
    head = WIDTH // 4
    for shape, heads in zip(pruned, term.heads, strict=True):
        assert heads > 1 and (shape.heads * head) % heads == 0
    # attention heads are a layer's own: of two equally pruned models, each layer has its number
    match_heads = Match(loss="attention", layers=[[0, 0], [1, 1]])
    (term,) = make_matches(Losses(cosine=0.0, match=[match_heads]), student.config, student.config, None).values()
    assert term.heads == (3, 2)
    with pytest.raises(UserError, match="student has 2 attention heads and the teacher 4"):
        wanted = Match(loss="attention", layers=[[1, 3]])
        make_matches(Losses(cosine=0.0, match=[wanted]), student.config, teacher.config, None)
    set_layer_shapes(student.config, [LayerShape(3, 40), LayerShape(0, 40)])
    with pytest.raises(UserError, match="the student's layer 1 has no attention heads left"):
        make_matches(Losses(cosine=0.0, match=[match]), student.config, teacher.config, None)
