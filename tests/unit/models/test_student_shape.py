"""Test students with embeddings of their own width, and students whose layers share weights."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig

from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.estimate.estimate import Estimator
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.estimate.known_models import find_known_model
from ds_distill.losses.objective import Objective
from ds_distill.models.factorized import Head, factorize_head, principal_isometry
from ds_distill.models.families import get_family
from ds_distill.models.learnable import freeze_all_but, freeze_unreached
from ds_distill.models.loading import load_masked_lm, no_pooler
from ds_distill.models.saving import save_model_folder
from ds_distill.models.student import build_student, count_parameters
from ds_distill.models.student_plan import plan_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match, Recipe, Student
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder
from tests.unit.models.test_teacher import (
    padding_mask,
    tiny_albert,
    tiny_bert,
    tiny_deberta,
    tiny_distilbert,
    tiny_electra,
    tiny_modernbert,
    tiny_mpnet,
    tiny_roberta,
    tokens,
)

SHAPES = [
    {"embedding_size": 16},
    {"num_hidden_groups": 2},
    {"embedding_size": 16, "num_hidden_groups": 1},
    {"intermediate_size": 16, "family": "bert"},
]


def embeddings(model) -> torch.Tensor:
    """Return what enters the first layer."""
    with torch.no_grad():
        states = get_family(model).get_encoder(model)(tokens(), output_hidden_states=True).hidden_states
    return states[0]


def tables(model) -> list[nn.Parameter]:
    parts = get_family(model).get_encoder(model).embeddings
    return [parts.word_embeddings.weight, parts.position_embeddings.weight, parts.token_type_embeddings.weight]


@pytest.mark.parametrize("shape", [{"embedding_size": 32}, {"num_hidden_groups": 4}])
@pytest.mark.parametrize("mask", [None, padding_mask()])
@pytest.mark.parametrize("make", [tiny_bert, tiny_roberta])
def test_a_whole_width_and_a_group_for_each_layer_leave_the_teacher_as_it_is(make, shape, mask):
    teacher = make(4)
    student = build_student(teacher, init_layers=[0, 1, 2, 3], **shape).eval()
    assert student.config.model_type == ("albert" if "num_hidden_groups" in shape else "electra")
    types = torch.arange(12).expand_as(tokens()) % teacher.config.type_vocab_size
    with torch.no_grad():
        expected, actual = (
            model(tokens(), attention_mask=mask, token_type_ids=types).logits for model in (teacher, student)
        )
    real = slice(None) if mask is None else mask
    assert (actual - expected)[real].abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", [None, "albert"])
@pytest.mark.parametrize(
    "make", [tiny_bert, tiny_roberta, lambda: tiny_electra(embedding_size=32), tiny_electra, tiny_albert]
)
def test_embeddings_of_few_dimensions_are_factorized_without_loss(make, family):
    """Beside the mean of their coordinates, which the norm takes away, they have as many as the factors keep."""
    teacher = make()
    width = tables(teacher)[0].shape[1]
    span = torch.randn(7, width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for table in tables(teacher):
            coordinates = torch.randn(len(table), 7, generator=torch.Generator().manual_seed(len(table)))
            table.copy_(coordinates @ span + torch.arange(len(table))[:, None] / 50)
    student = build_student(teacher, init_layers=[0, 1, 2], embedding_size=8, family=family).eval()
    assert tables(student)[0].shape == (101, 8)
    assert (embeddings(student) - embeddings(teacher)).abs().max() <= 1e-5 * embeddings(teacher).abs().max()
    # what the decoder would give for the head's output
    decoder = get_family(student).get_decoder(student)
    assert decoder.weight is tables(student)[0] and decoder.bias.equal(get_family(teacher).get_decoder(teacher).bias)


@pytest.mark.parametrize(
    ("shape", "family"), [({"embedding_size": 16}, "electra"), ({"num_hidden_groups": 2}, "albert")]
)
@pytest.mark.parametrize("make", [tiny_deberta, tiny_distilbert, tiny_electra, tiny_mpnet])
def test_teachers_of_all_families_whose_layers_are_berts_have_such_students(make, shape, family):
    teacher = make(4)
    student = build_student(teacher, init_layers=[0, 1, 1, 3], **shape)
    assert student.config.model_type == family and student.config.embedding_size in (16, 32)
    last = get_family(student).get_layers(student)[-1]
    value = last.get_submodule(get_family(student).projections[2]).weight
    theirs = [
        get_family(teacher).get_layers(teacher)[layer].get_submodule(get_family(teacher).projections[2]).weight
        for layer in (1, 3)
    ]
    torch.testing.assert_close(value, theirs[1] if family == "electra" else (theirs[0] + theirs[1]) / 2)


def test_a_teacher_whose_layers_stay_behind_has_its_embeddings_factorized():
    teacher = tiny_modernbert()
    words = teacher.get_input_embeddings().weight
    with torch.no_grad():
        words.copy_(torch.randn(101, 7) @ torch.randn(7, 32))
    student = build_student(teacher, family="electra", embedding_size=8)
    norms = student.get_input_embeddings().weight.norm(dim=1) * 2  # √(32/8)
    centered = words - words.mean(1, keepdim=True)
    means = words.mean(1).square() * 32
    torch.testing.assert_close(norms.square(), centered.square().sum(1) + means, rtol=1e-4, atol=1e-5)


def test_what_the_text_has_often_is_kept():
    """Of all isometries that keep equal coordinates, the weighted error of words is least."""
    teacher = tiny_bert()
    counts = torch.zeros(90)
    counts[:10] = 1e6
    words, positions, types = (table.detach().double() for table in tables(teacher))
    alone = (words, torch.zeros_like(positions), torch.zeros_like(types))
    kept = {name: principal_isometry(alone, 12, given) for name, given in (("counts", counts), ("evenly", None))}
    weights = 1 + torch.cat([counts, torch.zeros(11)]).double()

    def error(isometry, weights):
        rest = words - words @ isometry @ isometry.T
        return (weights[:, None] * (rest - rest.mean(1, keepdim=True)).square()).sum().item()

    centered = (weights.sqrt()[:, None] * (words - words.mean(1, keepdim=True))).T
    dropped = torch.linalg.svdvals(centered)[11:]
    assert error(kept["counts"], weights) == pytest.approx(dropped.square().sum().item(), rel=1e-9)
    assert error(kept["counts"], weights) < error(kept["evenly"], weights)
    assert error(kept["counts"], torch.ones(101)) > error(kept["evenly"], torch.ones(101))
    for isometry in kept.values():
        assert torch.allclose(isometry.T @ isometry, torch.eye(12).double(), atol=1e-12)
        assert torch.allclose(isometry @ torch.ones(12).double(), torch.full((32,), math.sqrt(12 / 32)).double())


@pytest.mark.parametrize("shape", [{}, {"num_hidden_groups": 4}])
def test_a_head_that_is_fitted_to_text_answers_more_like_the_teachers(shape):
    teacher = tiny_bert(4)
    generator = torch.Generator().manual_seed(4)
    text, other = (torch.randint(2, 101, (size, 20), generator=generator) for size in (40, 8))
    found = []
    for sample in (None, text):
        student = build_student(
            teacher, init_layers=[0, 1, 2, 3], embedding_size=16, sample=sample, dropout=0.0, **shape
        ).eval()
        with torch.no_grad():
            logits = [model(other).logits.log_softmax(-1).flatten(0, 1) for model in (student, teacher)]
        found.append(nn.functional.kl_div(*logits, log_target=True, reduction="batchmean").item())
    assert found[1] < 0.8 * found[0]


def test_a_head_that_is_fitted_to_what_is_linear_gives_its_direction():
    """What is left is the length of the output, which a norm cannot give, and how far a GELU is from linear."""
    generator = torch.Generator().manual_seed(4)
    hidden, dense, bias = (torch.randn(*size, generator=generator).double() for size in ((4000, 12), (32, 12), (32,)))
    isometry = principal_isometry((torch.eye(32), torch.zeros(1, 32), torch.zeros(1, 32)), 24, None)
    output = hidden @ dense.T
    made = factorize_head(Head(dense, bias, torch.ones(32), torch.zeros(32)), isometry, hidden, output)
    read = nn.functional.gelu(hidden @ made.dense.T + made.bias)
    read = nn.functional.layer_norm(read, (24,), made.scale, made.shift)
    wanted = output @ isometry
    directions = (x - x.mean(1, True) for x in (read, wanted))
    assert nn.functional.cosine_similarity(*directions, dim=1).mean() > 0.98


def test_a_group_starts_from_the_mean_of_its_layers():
    teacher = tiny_bert(4)
    student = build_student(teacher, init_layers=[0, 1, 3], num_hidden_groups=2)
    family = get_family(student)
    assert family.layer_places(student.config) == [0, 0, 1] and student.config.num_hidden_layers == 3
    first, second = (layer.ffn.weight for layer in family.get_layers(student))
    theirs = [layer.intermediate.dense.weight for layer in teacher.bert.encoder.layer]
    torch.testing.assert_close(first, (theirs[0] + theirs[1]) / 2)
    assert torch.equal(second, theirs[3])
    deeper = build_student(tiny_albert(4), init_layers=[0, 1, 2, 3, 3, 3], num_hidden_groups=3)
    assert deeper.config.num_hidden_layers == 6 and len(get_family(deeper).get_layers(deeper)) == 3
    assert plan_student(tiny_albert(4).config)[1].num_hidden_groups == 2  # of two layers, as the teacher's
    assert plan_student(tiny_albert(4).config, num_layers=1)[1].num_hidden_groups == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_its_losses_are_the_teachers_terms_and_every_parameter_learns(shape):
    """The vocabulary loss takes the student's width, which is not the teacher's; a relation sees each layer."""
    teacher = Teacher(tiny_bert(4))
    student = build_student(teacher.model, num_layers=4, dropout=0.0, **shape)
    losses = Losses(match=[Match("mse", layers="mapped"), Match("relation", layers=[(0, 0), (1, 1), (3, 3)])])
    objective = Objective(student, losses, 1, teacher.config, [0, 1, 2, 3])
    ids = tokens()
    labels = torch.where(torch.arange(12) % 4 == 1, ids, -100)
    targets = teacher.targets(ids, sites=objective.teacher_sites)
    loss, sums = objective(ids, None, labels, (ids.numel(), int((labels >= 0).sum())), targets)
    loss.backward()
    assert torch.isfinite(loss) and (sums > 0).all()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    with torch.no_grad():
        logits = student.eval()(ids).logits.flatten(0, 1)
        masked = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        softened = [(model(ids).logits / 2).log_softmax(-1) for model in (student, teacher.model)]
        expected = 4 * nn.functional.kl_div(*softened, log_target=True, reduction="sum")
    assert sums[:2].tolist() == pytest.approx([expected.item(), masked.item()], rel=1e-4)


def test_a_relation_sees_a_shared_layer_each_time_that_it_runs():
    """Both students run the teacher's first layer twice, one of them with one set of weights."""
    teacher, ids, found = Teacher(tiny_bert(4)), tokens(), []
    for shape in ({"family": "bert"}, {"num_hidden_groups": 2}):
        student = build_student(teacher.model, init_layers=[0, 0, 2, 3], dropout=0.0, **shape)
        for layer in (0, 1):
            losses = Losses(0.0, 0.0, 0.0, match=[Match("relation", layers=[(layer, 1)])])
            objective = Objective(copy.deepcopy(student), losses, 1, teacher.config)
            targets = teacher.targets(ids, sites=objective.teacher_sites)
            found.append(objective(ids, None, torch.full_like(ids, -100), (ids.numel(), 0), targets)[0].item())
    assert found[2:] == pytest.approx(found[:2], rel=1e-5) and found[0] != pytest.approx(found[1], rel=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stock_class_reloads_it(tmp_path, shape):
    student = build_student(tiny_bert(4), num_layers=4, **shape).eval()
    student.save_pretrained(tmp_path)
    reloaded = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(reloaded(tokens()).logits, student(tokens()).logits)
        bare = AutoModel.from_pretrained(tmp_path, **no_pooler(student.config.model_type))
        encoder = get_family(student).get_encoder(student)
        assert torch.equal(bare.eval()(tokens()).last_hidden_state, encoder(tokens()).last_hidden_state)
    again = build_student(student, init_layers=[0, 1, 2, 3], family=shape.get("family")).eval()  # as a teacher
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, student(tokens()).logits)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("shape", [{"embedding_size": 8}, {"num_hidden_groups": 1}])
def test_its_folder_has_its_teachers_tokenizer(tmp_path, family, shape):
    """Also where the class of its model usually has another kind."""
    folder = save_encoder(family, tmp_path / "teacher")
    student = build_student(load_masked_lm(str(folder)), num_layers=2, **shape).eval()
    tokenizer = load_tokenizer(folder)
    save_model_folder(student, tokenizer, tmp_path / "student")
    texts = ["A text, with words in it.", "Ünïted"]
    expected = load_tokenizer(folder)(texts)["input_ids"]
    found = AutoTokenizer.from_pretrained(tmp_path / "student")
    inputs = found(texts, padding=True, return_tensors="pt")
    assert [row[: len(ids)].tolist() for row, ids in zip(inputs["input_ids"], expected, strict=True)] == expected
    assert found.mask_token_id == tokenizer.mask_token_id
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(tmp_path / "student").eval()(**inputs).logits
        assert torch.equal(logits, student(**inputs).logits)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tiny_bert, {"embedding_size": 33}, r"student\.embedding_size = 33: give .* 2 to .*, 32"),
        (tiny_bert, {"embedding_size": 1}, r"student\.embedding_size = 1: give"),
        (tiny_electra, {"embedding_size": 17}, r"student\.embedding_size = 17: .*, 16"),
        (tiny_bert, {"embedding_size": 16, "hidden_size": 16}, "16: is also the student's hidden size, and electra"),
        (
            tiny_bert,
            {"embedding_size": 16, "family": "distilbert"},
            "family is distilbert, and its embeddings have no width of their own; set student.family = electra, or",
        ),
        (
            tiny_mpnet,
            {"embedding_size": 16, "family": "mpnet"},
            "family is mpnet, .*; leave student.family out, and the student is of the family electra",
        ),
        (
            tiny_modernbert,
            {"embedding_size": 16},
            "family is modernbert, .*; set student.family = electra, whose layers are then new, or leave student.emb",
        ),
        (tiny_bert, {"num_hidden_groups": 5, "num_layers": 3}, "num_hidden_groups = 5: the student's 3 layers can be"),
        (tiny_bert, {"num_hidden_groups": 0}, "num_hidden_groups = 0: "),
        (
            tiny_bert,
            {"num_hidden_groups": 1, "family": "electra"},
            "family is electra, and its layers cannot share weights; set student.family = albert",
        ),
        (
            tiny_modernbert,
            {"num_hidden_groups": 1},
            "family is modernbert, .*; set student.family = albert, whose layers are then new, or leave student.num",
        ),
    ],
)
def test_shapes_that_cannot_be_are_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        plan_student(make().config, **options)


def test_layers_that_share_their_weights_are_frozen_together():
    student = build_student(tiny_bert(4), num_layers=4, num_hidden_groups=2)
    freeze_unreached(student, 1, head=False)
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert any("groups.0" in name for name in trained) and not any("groups.1" in name for name in trained)
    student = build_student(tiny_bert(4), num_layers=4, num_hidden_groups=2)
    with pytest.raises(UserError, match=r"stages\[0\].learnable: layer 3: has the weights of layer 2; give 2, which"):
        freeze_all_but(student, [3], 3, "stages[0]", head=True)
    freeze_all_but(student, [2], 3, "stages[0]", head=True)
    assert all(("groups.1" in name) == p.requires_grad for name, p in student.named_parameters())


@pytest.mark.parametrize("make", [tiny_bert, tiny_electra, tiny_roberta])
def test_a_narrower_student_may_have_as_many_heads_as_its_teacher(make):
    """It takes the first dimensions of each head, and can be compared by attention scores, as TinyBERT-4."""
    teacher = make(4)
    student = build_student(teacher, init_layers=[1, 3], hidden_size=16, num_attention_heads=4, dropout=0.0)
    family, own = get_family(teacher), get_family(student)
    assert (family.dims(teacher.config).heads, own.dims(student.config)[1:3]) == (4, (4, 16))
    layers = family.get_layers(teacher)[3], own.get_layers(student)[1]
    for projection, other in zip(own.projections, family.projections, strict=True):
        whole, part = layers[0].get_submodule(other), layers[1].get_submodule(projection)
        assert torch.equal(part.weight, whole.weight.view(4, 8, 32)[:, :4, :16].reshape(16, 16))
        assert torch.equal(part.bias, whole.bias.view(4, 8)[:, :4].reshape(16))
    whole, part = layers[0].get_submodule(family.outputs[0]), layers[1].get_submodule(own.outputs[0])
    assert torch.equal(part.weight, whole.weight.view(32, 4, 8)[:16, :, :4].reshape(16, 16))
    assert torch.equal(part.bias, whole.bias[:16])
    losses = Losses(kl=0, mlm=0, cosine=0, match=[Match("attention", layers=[(0, 1), (1, 3)])])
    objective, frozen = Objective(student, losses, 1, teacher.config, [1, 3]), Teacher(teacher)
    ids = tokens()
    targets = frozen.targets(ids, sites=objective.teacher_sites, head=False)
    loss, _ = objective(ids, None, torch.full_like(ids, -100), (ids.numel(), 0), targets)
    loss.backward()
    assert loss > 0 and layers[1].get_submodule(own.projections[0]).weight.grad.any()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (tiny_bert, {"hidden_size": 16, "num_attention_heads": 5}, "give 1 to the teacher's 4 heads, and with student"),
        (tiny_bert, {"hidden_size": 18, "num_attention_heads": 4}, "with student.hidden_size = 18 a number that divid"),
        (tiny_bert, {"hidden_size": 32, "num_attention_heads": 2}, "heads of at most the teacher's 8 dimensions"),
        (tiny_modernbert, {"hidden_size": 16, "num_attention_heads": 4}, "heads of a modernbert cannot be cut one by"),
    ],
)
def test_heads_that_a_student_cannot_have_are_refused(make, options, message):
    with pytest.raises(UserError, match=f"student.num_attention_heads = .*{message}"):
        plan_student(make(4).config, **options)


def test_six_narrow_layers_have_the_operations_of_three_whole_ones():
    """Attention between tokens aside, which is run in each layer: a quarter of the feed-forward, at twice the depth."""
    teacher = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    narrow = plan_student(teacher, num_layers=6, intermediate_size=384, family="bert")[1]
    whole = plan_student(teacher, num_layers=3, family="bert")[1]
    assert narrow.intermediate_size == 384 and type(narrow) is BertConfig
    short, long = (np.array([forward_flops_per_token(c, length, 0.0) for c in (narrow, whole)]) for length in (64, 128))
    between = 2 * (long - short)  # which grows with the length
    assert (long - between)[0] == (long - between)[1] > 0 and between[0] == 2 * between[1] < 0.2 * long[0]


def test_estimates_count_what_a_factorized_and_a_shared_student_have_and_run():
    h, inner, vocabulary, length, size = 768, 3072, 30_522, 128, 128
    bert = find_known_model("bert-base-uncased")
    block = 4 * h * h + 2 * h * inner
    for options, blocks in (({"embedding_size": size}, 6), ({"embedding_size": size, "num_hidden_groups": 2}, 2)):
        estimator = Estimator(Recipe(student=Student(**options)), [bert])
        config = estimator.student.config
        per_block = block + 4 * h + inner + h + 4 * h  # biases and two norms
        outside = (vocabulary + 512 + 2) * size + 2 * size + (size * h + h) + (h * size + size) + 2 * size + vocabulary
        assert count_parameters(estimator.student) == blocks * per_block + outside
        forward = 6 * (block + 2 * length * h) + 2 * h * size + size * vocabulary
        assert forward_flops_per_token(config, length) == 2 * forward


def test_embeddings_as_wide_as_the_layers_do_not_lose_the_teachers_projection():
    with pytest.raises(UserError, match="student.embedding_size = 16: is also the student's hidden size"):
        build_student(tiny_electra(embedding_size=16), hidden_size=16, embedding_size=16)
    build_student(tiny_electra(embedding_size=32), num_layers=2, embedding_size=32)  # its teacher has none
