"""The student: which layers it takes, and that what it takes is the teacher's."""

import warnings

import pytest
import torch

from ds_distill.errors import UserError
from ds_distill.models.student import build_student, count_parameters, resolve_layer_map
from tests.unit.test_models_teacher import padding_mask, randomised, tiny_bert, tiny_distilbert, tokens


def test_known_layer_maps():
    assert resolve_layer_map("every_other", 12, 6) == [0, 2, 4, 7, 9, 11]
    assert resolve_layer_map("every_other", 12, None) == [0, 2, 4, 7, 9, 11]
    assert resolve_layer_map("every_other", 6, 3) == [0, 2, 5]
    assert resolve_layer_map("every_other", 1, None) == [0]
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
        ([0, 2, 4, 7, 9, 14], None, r"student\.layers\[5\] = 14: the teacher has 12 layers, 0 to 11"),
        ([-1], None, r"student\.layers\[0\] = -1"),
        ([True], None, r"student\.layers\[0\] = True"),
        ([], None, r"student\.layers = \[\]"),
        ([0, 1], 3, r"student\.num_layers = 3: student\.layers names 2"),
        ("every_other", 13, r"student\.num_layers = 13.*1 to 12"),
        ("every_other", 0, r"student\.num_layers = 0"),
        ("evry_other", None, r"student\.layers = 'evry_other'"),
    ],
)
def test_unfit_layer_maps_are_refused(spec, depth, message):
    with pytest.raises(UserError, match=message):
        resolve_layer_map(spec, 12, depth)


@pytest.mark.parametrize("make", [tiny_bert, tiny_distilbert])
@pytest.mark.parametrize("mask", [None, padding_mask()])
def test_identity_copy_reproduces_the_teacher(make, mask):
    teacher = make(4)
    student = build_student(teacher, layers=[0, 1, 2, 3]).eval()
    with torch.no_grad():
        expected, found = teacher(tokens(), attention_mask=mask).logits, student(tokens(), attention_mask=mask).logits
    real = slice(None) if mask is None else mask
    assert (found - expected)[real].abs().max() <= 1e-5 * expected.abs().max()


def test_layers_come_from_the_map():
    teacher = tiny_bert(4)
    student = build_student(teacher, layers=[3, 1])
    for ours, layer in zip(student.distilbert.transformer.layer, (3, 1), strict=True):
        assert torch.equal(ours.attention.k_lin.weight, teacher.bert.encoder.layer[layer].attention.self.key.weight)
        assert torch.equal(ours.output_layer_norm.bias, teacher.bert.encoder.layer[layer].output.LayerNorm.bias)


def test_student_is_tied_fp32_and_its_own():
    teacher = tiny_bert().half()
    student = build_student(teacher, dropout=0.3)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    assert (student.config.dropout, student.config.attention_dropout, student.config.n_layers) == (0.3, 0.3, 1)
    assert not {parameter.data_ptr() for parameter in teacher.parameters()} & {parameter.data_ptr() for parameter in student.parameters()}
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
    first, again, other = (build_student(teacher, layers="random", seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "distilbert.transformer.layer.1.ffn.lin1.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first["distilbert.embeddings.word_embeddings.weight"], teacher.bert.embeddings.word_embeddings.weight)
    assert build_student(teacher, layers="random", num_layers=6).config.n_layers == 6


@pytest.mark.parametrize("layers", ["every_other", "random"])
def test_frozen_positions(layers):
    student = build_student(tiny_bert(), layers=layers, freeze_positions=True)
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["distilbert.embeddings.position_embeddings.weight"]
    assert all(parameter.requires_grad for parameter in build_student(tiny_bert(), layers=layers).parameters())


def test_what_distilbert_cannot_be_is_said():
    with pytest.warns(UserWarning, match="layer_norm_eps = 1e-05"):
        build_student(tiny_bert(layer_norm_eps=1e-5))
    untied = randomised(tiny_bert(tie_word_embeddings=False))
    with pytest.raises(UserError, match="not tied"):
        build_student(untied)
    with pytest.raises(UserError, match=r"student\.dropout = 1\.5"):
        build_student(tiny_bert(), dropout=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_student(untied, layers="random")
