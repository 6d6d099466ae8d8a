"""Test which layers the student takes, and that they are the teacher's."""

import pytest
import torch

from ds_distill.losses.objective import Objective
from ds_distill.models.families import check_recomputes, get_family
from ds_distill.models.intermediates import LAST_HIDDEN
from ds_distill.models.student import build_student, count_parameters
from ds_distill.models.student_plan import plan_student, resolve_layer_map
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import (
    FAMILIES,
    padding_mask,
    randomised,
    tiny_bert,
    tiny_deberta,
    tiny_electra,
    tiny_modernbert,
    tiny_mpnet,
    tiny_roberta,
    tokens,
)


def test_known_layer_maps():
    assert resolve_layer_map("every_other", 12, 6) == [0, 2, 4, 7, 9, 11]
    assert resolve_layer_map("every_other", 12, None) == [0, 2, 4, 7, 9, 11]
    assert resolve_layer_map("every_other", 6, 3) == [0, 2, 5]
    assert resolve_layer_map("every_other", 1, None) == [0]
    assert resolve_layer_map("inner", 12, None) == [1, 3, 5, 6, 8, 10]
    assert resolve_layer_map("inner", 6, 3) == [1, 2, 4]
    assert resolve_layer_map("inner", 3, None) == [1]
    assert resolve_layer_map([11, 0, 0], 12, None) == [11, 0, 0]
    assert resolve_layer_map("random", 12, 5) is None


@pytest.mark.parametrize("depth", range(1, 13))
def test_every_depth_is_spread_over_the_teacher(depth):
    layers = resolve_layer_map("every_other", 12, depth)
    assert len(set(layers)) == depth and layers == sorted(layers)
    assert layers[0] == 0 and (depth == 1 or layers[-1] == 11)


@pytest.mark.parametrize(
    ("spec", "depth", "message"),
    [
        ([0, 2, 4, 7, 9, 14], None, r"student\.init_layers\[5\] = 14: the teacher has 12 layers, 0 to 11"),
        ([-1], None, r"student\.init_layers\[0\] = -1"),
        ([True], None, r"student\.init_layers\[0\] = True"),
        ([], None, r"student\.init_layers = \[\]"),
        ([0, 1], 3, r"student\.num_layers = 3: student\.init_layers names 2"),
        ("every_other", 13, r"student\.num_layers = 13.*1 to 12"),
        ("every_other", 0, r"student\.num_layers = 0"),
        ("evry_other", None, r"student\.init_layers = 'evry_other'"),
        ("inner", 11, r"student\.init_layers = inner: the teacher has 10 layers between .* a student of 11; "),
    ],
)
def test_unfit_layer_maps_are_refused(spec, depth, message):
    with pytest.raises(UserError, match=message):
        resolve_layer_map(spec, 12, depth)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("mask", [None, padding_mask()])
def test_identity_copy_reproduces_the_teacher(make, mask):
    teacher = make(4)
    student = build_student(teacher, init_layers=[0, 1, 2, 3]).eval()
    with torch.no_grad():
        expected, actual = teacher(tokens(), attention_mask=mask).logits, student(tokens(), attention_mask=mask).logits
    real = slice(None) if mask is None else mask
    assert (actual - expected)[real].abs().max() <= 1e-5 * expected.abs().max()


def test_layers_come_from_the_map():
    teacher = tiny_bert(4)
    student = build_student(teacher, init_layers=[3, 1])
    for block, layer in zip(student.distilbert.transformer.layer, (3, 1), strict=True):
        assert torch.equal(block.attention.k_lin.weight, teacher.bert.encoder.layer[layer].attention.self.key.weight)
        assert torch.equal(block.output_layer_norm.bias, teacher.bert.encoder.layer[layer].output.LayerNorm.bias)


def test_student_is_tied_fp32_and_its_own():
    teacher = tiny_bert().half()
    student = build_student(teacher, dropout=0.3)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert (student.config.dropout, student.config.attention_dropout, student.config.n_layers) == (0.3, 0.3, 1)
    assert not {parameter.data_ptr() for parameter in teacher.parameters()} & {
        parameter.data_ptr() for parameter in student.parameters()
    }
    assert count_parameters(student) == sum(
        tensor.numel() for name, tensor in student.state_dict().items() if name != "vocab_projector.weight"
    )


def test_saved_student_reloads_equal(tmp_path):
    student = build_student(tiny_bert()).eval()
    student.save_pretrained(tmp_path)
    assert torch.equal(type(student).from_pretrained(tmp_path)(tokens()).logits, student(tokens()).logits)


def test_random_start_is_seeded_and_leaves_the_global_generator_alone():
    teacher = tiny_bert(4)
    state = torch.get_rng_state()
    first, again, other = (build_student(teacher, init_layers="random", seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "distilbert.transformer.layer.1.ffn.lin1.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(
        first["distilbert.embeddings.word_embeddings.weight"], teacher.bert.embeddings.word_embeddings.weight
    )
    assert build_student(teacher, init_layers="random", num_layers=6).config.n_layers == 6


@pytest.mark.parametrize("layers", ["every_other", "random"])
def test_frozen_positions(layers):
    student = build_student(tiny_bert(), init_layers=layers, freeze_positions=True)
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["distilbert.embeddings.position_embeddings.weight"]
    assert all(parameter.requires_grad for parameter in build_student(tiny_bert(), init_layers=layers).parameters())


@pytest.mark.parametrize("make", [make for make in FAMILIES if make not in (tiny_deberta, tiny_modernbert)])
def test_frozen_positions_are_the_teachers_in_every_family_that_has_them(make):
    student, family = build_student(make(), freeze_positions=True), get_family(make())
    (frozen,) = (name for name, parameter in student.named_parameters() if not parameter.requires_grad)
    assert frozen == f"{get_family(student).encoder}.embeddings.position_embeddings.weight"
    if family.student is None:  # else the token types are in them
        assert torch.equal(student.get_parameter(frozen), make().get_parameter(frozen))
    if family.student is None and not family.sinusoidal:
        with pytest.raises(UserError, match="freeze_positions"):
            build_student(make(), init_layers="random", freeze_positions=True)


@pytest.mark.parametrize("width", [32, 16])
def test_all_layers_of_an_mpnet_student_share_their_teachers_relative_bias(width):
    """Fewer heads take the bias of the teacher's first ones, and every bucket is there."""
    teacher = tiny_mpnet(4)
    student = build_student(teacher, init_layers=[0, 3], hidden_size=width)
    ours, theirs = (model.mpnet.encoder.relative_attention_bias.weight for model in (student, teacher))
    assert theirs.shape == (32, 4) and torch.equal(ours, theirs[:, : width // 8])


def test_layers_that_transformers_cannot_recompute_are_refused():
    with pytest.raises(UserError, match="gradient_checkpointing = true: .* the layers of an mpnet; set it to false"):
        check_recomputes(tiny_mpnet().config)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_table_says_which_layers_transformers_can_recompute(make):
    model = make()
    assert get_family(model).recomputes == model.supports_gradient_checkpointing


def test_what_distilbert_cannot_be_is_said(capsys):
    build_student(tiny_bert(layer_norm_eps=1e-5))
    assert "layer_norm_eps is 1e-05" in capsys.readouterr().err
    build_student(tiny_roberta())  # its student has the same settings
    assert not capsys.readouterr().err
    untied = randomised(tiny_bert(tie_word_embeddings=False))
    with pytest.raises(UserError, match="not tied"):
        build_student(untied)
    with pytest.raises(UserError, match=r"training\.dropout = 1\.5"):
        build_student(tiny_bert(), dropout=1.5)
    build_student(untied, init_layers="random")


def test_a_berts_student_may_be_a_bert_and_keeps_its_token_types():
    teacher = randomised(tiny_bert(4))
    student = build_student(teacher, init_layers=[0, 1, 2, 3], family="bert", dropout=0.3).eval()
    assert type(student) is type(teacher) and student.config.hidden_dropout_prob == 0.3
    types = torch.arange(tokens().shape[1]).expand_as(tokens()) % 2
    with torch.no_grad():
        expected = teacher(tokens(), token_type_ids=types).logits
        assert (student(tokens(), token_type_ids=types).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    half = build_student(teacher, hidden_size=16, family="bert")
    words = teacher.bert.embeddings.token_type_embeddings.weight
    assert torch.equal(half.bert.embeddings.token_type_embeddings.weight, words[:, :16])
    assert type(build_student(teacher, family="distilbert")) is type(build_student(teacher))
    bare = build_student(teacher, family="bert", head=False)
    assert bare.config.model_type == "bert" and bare.pooler is None


@pytest.mark.parametrize("embedding", [16, 32, 64])
def test_the_embeddings_of_an_electra_shrink_with_its_layers(embedding):
    """A projection lies between them where their widths differ, in the student as in its teacher."""
    teacher = tiny_electra(4, embedding_size=embedding)
    student = build_student(teacher, hidden_size=16)
    assert student.config.embedding_size == embedding // 2
    assert hasattr(student.electra, "embeddings_project") == hasattr(teacher.electra, "embeddings_project")
    theirs = dict(teacher.named_parameters())
    for name, value in student.named_parameters():
        if ".layer." not in name:
            assert torch.equal(value, theirs[name][tuple(map(slice, value.shape))]), name
    assert student.generator_lm_head.weight is student.electra.embeddings.word_embeddings.weight
    assert student(tokens()).logits.shape == (3, 12, 101)


def test_an_electras_student_may_be_a_bert_where_its_embeddings_are_as_wide_as_its_layers():
    teacher = tiny_electra(4, embedding_size=32)
    student = build_student(teacher, init_layers=[0, 1, 2, 3], family="bert", dropout=0.3).eval()
    assert student.config.model_type == "bert" and student.config.hidden_dropout_prob == 0.3
    types = torch.arange(tokens().shape[1]).expand_as(tokens()) % 2
    with torch.no_grad():
        for given in ({}, {"token_type_ids": types}, {"attention_mask": padding_mask()}):
            expected, real = teacher(tokens(), **given).logits, given.get("attention_mask", slice(None))
            assert (student(tokens(), **given).logits - expected)[real].abs().max() <= 1e-5 * expected.abs().max()
    half = build_student(teacher, hidden_size=16, family="bert", head=False)
    words = teacher.electra.embeddings.word_embeddings.weight
    assert torch.equal(half.embeddings.word_embeddings.weight, words[:, :16]) and half.config.hidden_size == 16
    assert type(build_student(teacher)) is type(teacher) is type(build_student(teacher, family="electra"))


@pytest.mark.parametrize("make", FAMILIES)
def test_narrower_feed_forward_layers_compute_with_the_teachers_first_columns(make):
    teacher = randomised(make(2))
    student = build_student(teacher, init_layers=[0, 1], intermediate_size=5).eval()
    family = get_family(teacher)
    for layer in family.get_layers(teacher):
        (linear,) = (
            part
            for part in layer.modules()
            if getattr(part, "in_features", 0) == family.dims(teacher.config).feed_forward
        )
        linear.weight.data[:, 5:] = 0
    with torch.no_grad():
        expected, actual = teacher(tokens()).logits, student(tokens()).logits
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    for size in (0, family.dims(teacher.config).feed_forward + 1):
        with pytest.raises(UserError, match=rf"student\.intermediate_size = {size}: give a whole number from 1 to"):
            plan_student(teacher.config, intermediate_size=size)


@pytest.mark.parametrize(
    ("make", "given", "names"),
    [
        (tiny_bert, "robrta", "distilbert, bert, electra, albert or modernbert"),
        (tiny_roberta, "mpnet", "roberta, bert, distilbert, electra, albert or modernbert"),
    ],
)
def test_a_family_that_a_student_cannot_have_is_refused(make, given, names):
    with pytest.raises(
        UserError, match=rf"student\.family = {given}: .* can be of the family {names}; give one of these"
    ):
        plan_student(make().config, family=given)


def test_a_roberta_student_keeps_what_roberta_has():
    teacher = tiny_roberta(4)
    student = build_student(teacher, dropout=0.3)
    assert (
        type(student) is type(teacher)
        and student.config.num_hidden_layers == 2
        and len(student.roberta.encoder.layer) == 2
    )
    assert (student.config.hidden_dropout_prob, student.config.attention_probs_dropout_prob) == (0.3, 0.3)
    assert teacher.config.num_hidden_layers == 4  # its own config stays unchanged
    assert student.lm_head.decoder.weight is student.roberta.embeddings.word_embeddings.weight
    assert torch.equal(
        student.roberta.encoder.layer[1].output.dense.weight, teacher.roberta.encoder.layer[3].output.dense.weight
    )
    with pytest.raises(UserError, match="freeze_positions"):
        build_student(teacher, init_layers="random", freeze_positions=True)


@pytest.mark.parametrize("make", FAMILIES)
def test_a_narrower_student_is_cut_from_its_teacher(make):
    teacher = make(4)
    student = build_student(teacher, hidden_size=16)
    student_family, teacher_family = get_family(student), get_family(teacher)
    assert student_family.dims(student.config)[:4] == (2, 2, 16, 24)
    query, other = (
        f.get_layers(m)[0].get_submodule(f.projections[0]).weight[:16]  # where it is fused, queries come first
        for f, m in ((student_family, student), (teacher_family, teacher))
    )
    assert torch.equal(query, other[:, :16])
    decoder, other = (f.get_decoder(m) for f, m in ((student_family, student), (teacher_family, teacher)))
    assert 2 * decoder.in_features == other.in_features
    assert torch.equal(decoder.weight, other.weight[:, : decoder.in_features]) and torch.equal(decoder.bias, other.bias)
    assert student(tokens()).logits.shape == (3, 12, 101)
    assert build_student(teacher, hidden_size=8, init_layers="random").num_parameters() < student.num_parameters()
    for wrong in (12, 40, -8):
        with pytest.raises(
            UserError,
            match=rf"student\.hidden_size = {wrong}: give a multiple of the teacher's head size 8, at most",
        ):
            build_student(teacher, hidden_size=wrong)


def test_differing_widths_meet_in_a_projection_that_learns():
    teacher = Teacher(tiny_bert(4))
    objective = Objective(build_student(teacher.model, hidden_size=16, dropout=0.0), Losses(), 1, teacher.config)
    ids = tokens()
    labels = torch.where(torch.arange(12) % 4 == 1, ids, -100)
    loss, sums = objective(ids, None, labels, (ids.numel(), int((labels >= 0).sum())), teacher.targets(ids))
    loss.backward()
    assert torch.isfinite(loss) and (sums > 0).all()
    projection = objective.matches["cosine"].projection
    assert projection.weight.shape == (32, 16) and projection.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in objective.parameters())
    assert not any("projection" in name for name, _ in objective.model.named_parameters())
    hidden = objective.model.distilbert(ids).last_hidden_state
    expected = (
        1
        - torch.nn.functional.cosine_similarity(
            hidden @ projection.weight.T, teacher.targets(ids).states[LAST_HIDDEN], dim=-1
        )
    ).sum()
    assert sums[2].item() == pytest.approx(expected.item(), rel=1e-5)
    assert Objective(build_student(teacher.model), Losses(), 1, teacher.config).matches["cosine"].projection is None
    assert not Objective(build_student(teacher.model, hidden_size=16), Losses(cosine=0.0), 1, teacher.config).matches


def test_a_student_starts_from_a_student(tmp_path):
    teacher = tiny_bert()
    earlier = randomised(build_student(teacher, num_layers=1))
    earlier.save_pretrained(tmp_path / "earlier")
    student = build_student(teacher, from_=str(tmp_path / "earlier"), dropout=0.3, freeze_positions=True)
    assert student.training and student.config.dropout == student.config.attention_dropout == 0.3
    assert {name: p.tolist() for name, p in student.named_parameters()} == {
        name: p.tolist() for name, p in earlier.named_parameters()
    }
    assert [name for name, p in student.named_parameters() if not p.requires_grad] == [
        "distilbert.embeddings.position_embeddings.weight"
    ]
    layer_map, config = plan_student(teacher.config, from_=str(tmp_path / "earlier"))
    assert layer_map is None and config.n_layers == 1
    with pytest.raises(
        UserError, match=r"student\.from .*earlier has a vocabulary of 101 tokens, its teacher one of 60"
    ):
        plan_student(tiny_bert(vocab_size=60).config, from_=str(tmp_path / "earlier"))
