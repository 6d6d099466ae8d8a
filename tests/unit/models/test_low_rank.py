"""Test linear layers in two factors: their start, their training, and their folders, which hold the products."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.exporters.formats import FORMATS, export_formats
from ds_distill.exporters.model import load_source
from ds_distill.exporters.published import publish_model
from ds_distill.finetune.heads import load_for_task
from ds_distill.loaded import load
from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loading import load_masked_lm, new_model
from ds_distill.models.low_rank import (
    LowRankLinear,
    activation_aware_factors,
    count_with_factors,
    factor_linears,
    input_moments,
    multiplied_out,
    restore_factors,
)
from ds_distill.models.saving import save_model_folder
from ds_distill.models.student import build_student
from ds_distill.models.student_plan import plan_student
from ds_distill.tasks.catalog import get_task
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder
from tests.unit.models.test_teacher import tiny_bert, tokens


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs() -> torch.Tensor:
    """Return [500, 16], some directions of which are a hundred times as long as others."""
    return drawn(500, 16, seed=1) * torch.logspace(0, -2, 16, dtype=torch.float64) @ drawn(16, 16, seed=2)


def moment_of(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def factors(model: nn.Module) -> dict[str, LowRankLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


@pytest.mark.parametrize(("out", "inner"), [(16, 16), (24, 16), (10, 16)])
def test_the_full_rank_gives_the_weights_back(out, inner):
    weight = drawn(out, inner)
    down, up, error = activation_aware_factors(weight, moment_of(inputs()), min(out, inner))
    torch.testing.assert_close(up @ down, weight, rtol=1e-8, atol=1e-8)
    assert error == 0


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_error_is_that_of_the_dropped_values_and_less_than_a_plain_decompositions(rank):
    weight, x = drawn(24, 16), inputs()
    down, up, error = activation_aware_factors(weight, moment_of(x), rank)

    def lost(product: torch.Tensor) -> float:
        return (x @ (weight - product).T).square().sum(1).mean().item()

    assert lost(up @ down) == pytest.approx(error, rel=1e-3)  # The moment is damped.
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    assert error < 0.9 * lost(left[:, :rank] * values[:rank] @ right[:rank])
    # Where all directions are alike, both are one.
    down, up, _ = activation_aware_factors(weight, torch.eye(16), rank)
    torch.testing.assert_close(up @ down, left[:, :rank] * values[:rank] @ right[:rank], rtol=1e-6, atol=1e-6)


def test_inputs_that_reach_few_directions_are_no_trouble():
    weight, moment = drawn(24, 16), moment_of(drawn(3, 16, seed=5))
    down, up, _ = activation_aware_factors(weight, moment, 3)
    assert ((weight - up @ down) @ moment).abs().max() < 1e-3 * (weight @ moment).abs().max()
    assert torch.isfinite(activation_aware_factors(weight, torch.zeros(16, 16), 2)[0]).all()


def test_the_inputs_of_a_layer_decide_what_its_factors_keep():
    teacher, text = tiny_bert(4), tokens()
    whole = build_student(teacher, num_layers=2, dropout=0.0, family="bert").eval()
    blind, fitted = (
        build_student(teacher, num_layers=2, dropout=0.0, family="bert", linear_rank=6, sample=sample).eval()
        for sample in (None, text)
    )
    with torch.no_grad():
        errors = [(model(text).logits - whole(text).logits).square().mean() for model in (blind, fitted)]
    assert 0 < errors[1] < errors[0]


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("bert", {}),
        ("bert", {"family": "bert"}),
        ("bert", {"num_hidden_groups": 1}),
        ("albert", {}),
        ("electra", {}),
        ("mpnet", {}),
        ("deberta-v2", {}),
        ("modernbert", {}),
    ],
)
def test_a_student_trains_in_factors_and_its_folder_is_of_the_stock_class(family, shape, tmp_path):
    teacher = find_model_folder(str(save_encoder(family, tmp_path / "teacher")))
    whole, student = (
        build_student(load_masked_lm(teacher), num_layers=2, dropout=0.0, sample=tokens(), **shape, **rank)
        for rank in ({}, {"linear_rank": 5})
    )
    assert factors(student) and count(student) < count(whole)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-2)
    student(tokens()).logits.square().mean().backward()
    assert all(part.up.weight.grad.any() and part.down.weight.grad.any() for part in factors(student).values())
    optimizer.step()
    save_model_folder(student, teacher.tokenizer, tmp_path / "saved")
    assert factors(student)  # They are back in place.
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    assert type(stock) is type(student) and count(stock) == count(whole)
    folder = find_model_folder(str(tmp_path / "saved"))
    again = build_student(stock, from_=str(folder.path), dropout=0.0)
    assert factors(again).keys() == factors(student).keys() and count(again) == count(student)
    assert (
        folder.linear_rank == again.config.linear_rank == 5
        and getattr(load_masked_lm(folder).config, "linear_rank", None) is None
    )
    with torch.no_grad():
        expected = student.eval()(tokens()).logits
        for model in (stock, again.eval()):
            torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-4, atol=1e-5)
    assert new_model(again.config, head=True).state_dict().keys() == again.state_dict().keys()
    length = tokens().shape[1]
    assert forward_flops_per_token(student.config, length) < forward_flops_per_token(whole.config, length)


def test_a_folder_is_fine_tuned_in_factors_and_exported_with_them(tmp_path):
    teacher = find_model_folder(str(save_encoder("bert", tmp_path / "teacher")))
    student = build_student(load_masked_lm(teacher), num_layers=2, dropout=0.0, linear_rank=5)
    save_model_folder(student, teacher.tokenizer, tmp_path / "saved")
    whole = load_for_task(str(tmp_path / "saved"), get_task("sst2"), "model", tuned=False)
    assert not factors(whole)
    tuned = restore_factors(whole, 5)
    assert factors(tuned).keys() == factors(student).keys()
    save_model_folder(tuned, teacher.tokenizer, tmp_path / "tuned")
    source = load_source(str(tmp_path / "tuned"))
    assert not factors(source.model) and factors(source.traced).keys() == factors(student).keys() and 5 in source.widths
    with torch.no_grad():
        for model in (tuned.eval(), source.model, source.traced, load(tmp_path / "tuned")):
            torch.testing.assert_close(model(tokens()).logits, whole.eval()(tokens()).logits, rtol=1e-4, atol=1e-5)
    (tmp_path / "published").mkdir()
    publish_model(source, tmp_path / "published", "a model")
    publish_model(load_source(str(tmp_path / "tuned")), tmp_path / "published", "a model")  # is taken for the same
    assert find_model_folder(str(tmp_path / "published")).linear_rank == 5
    load(tmp_path / "tuned").save_pretrained(tmp_path / "again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(tokens()).logits, load(tmp_path / "tuned")(tokens()).logits)


def test_weights_that_another_program_has_trained_since_stay_whole(tmp_path, capsys):
    teacher = find_model_folder(str(save_encoder("bert", tmp_path / "teacher")))
    student = build_student(load_masked_lm(teacher), num_layers=2, dropout=0.0, linear_rank=5)
    save_model_folder(student, teacher.tokenizer, tmp_path / "saved")
    other = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").eval()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rounded = copy.deepcopy(other).to(dtype).float()
        assert factors(restore_factors(rounded, 5)).keys() == factors(student).keys(), "rounding is no training"
    assert "they stay whole" not in capsys.readouterr().err
    with torch.no_grad():  # a few steps of one layer
        linear = other.get_submodule(next(iter(factors(student))))
        linear.weight.add_(1e-5 * torch.randn_like(linear.weight) * linear.weight.std())
    assert not factors(restore_factors(other, 5)) and "they stay whole" in capsys.readouterr().err
    other.save_pretrained(tmp_path / "other")
    again = build_student(other, from_=str(tmp_path / "other"), dropout=0.0).eval()
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, other(tokens()).logits) and not hasattr(again.config, "linear_rank")


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.long)])
def test_a_folder_in_16_bits_is_exported_in_its_factors(dtype, tmp_path):
    """The files and the model that they are compared with are of one kind."""
    teacher = find_model_folder(str(save_encoder("bert", tmp_path / "teacher")))
    student = build_student(load_masked_lm(teacher), num_layers=2, dropout=0.0, linear_rank=5)
    save_model_folder(student, teacher.tokenizer, tmp_path / "saved")
    AutoModelForMaskedLM.from_pretrained(tmp_path / "saved").to(dtype).save_pretrained(tmp_path / "saved")
    assert factors(load_source(str(tmp_path / "saved")).traced).keys() == factors(student).keys()
    rows = export_formats(str(tmp_path / "saved"), ["torch-export"], tmp_path / "out", text=[])["formats"]
    assert rows["torch-export"]["agreement"] == 1


@pytest.mark.long
def test_files_of_every_format_hold_the_factors_and_are_smaller(tmp_path):
    """Of a model so small, the graph itself has weight, so layers are wide."""
    teacher = find_model_folder(str(save_encoder("bert", tmp_path / "teacher")))
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
    wide = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(teacher.path, **sizes))
    names, megabytes = [name for name in FORMATS if not FORMATS[name].unavailable_reason()], []
    for rank in (None, 16):
        student = build_student(wide, num_layers=2, dropout=0.0, linear_rank=rank)
        save_model_folder(student, teacher.tokenizer, tmp_path / f"{rank}")
        rows = export_formats(str(tmp_path / f"{rank}"), names, tmp_path / f"{rank} out", text=[])["formats"]
        megabytes.append({name: row["megabytes"] for name, row in rows.items()})
        assert rows["onnx"]["agreement"] == 1
    assert len(names) > 3
    for name in names:
        assert megabytes[1][name] < 0.6 * megabytes[0][name], name


def test_a_teacher_that_was_trained_in_factors_teaches_as_it_is(tmp_path):
    folder = find_model_folder(str(save_encoder("bert", tmp_path / "teacher")))
    student = build_student(load_masked_lm(folder), num_layers=2, dropout=0.0, linear_rank=5)
    save_model_folder(student, folder.tokenizer, tmp_path / "saved")
    source = load_masked_lm(str(tmp_path / "saved"))
    assert not factors(source)
    assert not factors(build_student(source, num_layers=1)) and not hasattr(
        plan_student(source.config)[1], "linear_rank"
    )


def test_only_layers_that_become_smaller_change():
    student = build_student(tiny_bert(4), num_layers=1, family="bert")
    moments = input_moments(student, lambda: student(tokens()))
    factor_linears(student, 17, moments)  # 17 · (32 + 48) < 32 · 48, but 17 · 64 > 32 · 32
    kinds = {name: type(module) for name, module in student.named_modules()}
    assert kinds["bert.encoder.layer.0.attention.self.query"] is nn.Linear
    assert kinds["bert.encoder.layer.0.intermediate.dense"] is LowRankLinear


@pytest.mark.parametrize(
    ("rank", "reason"), [(0, "whole number, 1 or more"), (-3, "1 or more"), (20, "no linear layer")]
)
def test_an_unfit_rank_is_refused_before_anything_is_built(rank, reason):
    with pytest.raises(UserError, match=rf"student\.linear_rank = {rank}: .*{reason}"):
        plan_student(tiny_bert(4).config, num_layers=1, linear_rank=rank)


@pytest.mark.parametrize("rank", [0, -1, True, 2.5, "5", [5], {}])
def test_a_hostile_config_gets_a_sentence(rank, tmp_path):
    folder = save_encoder("bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"linear_rank": rank}))
    with pytest.raises(UserError, match=r"linear_rank in config\.json is .*whole number"):
        build_student(load_masked_lm(str(folder)), from_=str(folder))


def test_a_rank_for_which_no_layer_is_large_enough_gets_a_sentence(tmp_path):
    folder = save_encoder("bert", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"linear_rank": 1000}))
    with pytest.raises(UserError, match=r"config\.json: linear_rank = 1000: .* no linear layer .*remove it"):
        load_source(str(folder)).traced  # noqa: B018


def test_a_model_is_counted_in_its_factors_where_they_are_smaller(tmp_path):
    teacher = find_model_folder(str(save_encoder("bert", tmp_path / "teacher")))
    student = build_student(load_masked_lm(teacher), num_layers=2, dropout=0.0, linear_rank=5)
    save_model_folder(student, teacher.tokenizer, tmp_path / "saved")
    whole = load_masked_lm(str(tmp_path / "saved"))
    assert count_with_factors(whole, 5) == count(student) < count(whole)
    assert count_with_factors(whole, None) == count_with_factors(whole, 10**6) == count(whole)


def test_copies_of_a_factored_student_are_of_their_own():
    student = build_student(tiny_bert(4), num_layers=1, dropout=0.0, linear_rank=5).eval()
    other = copy.deepcopy(student)
    with multiplied_out(student), torch.no_grad():
        assert not factors(student) and factors(other)
        torch.testing.assert_close(student(tokens()).logits, other(tokens()).logits, rtol=1e-4, atol=1e-5)
    assert get_family(student).get_layers(student)[0] is not get_family(other).get_layers(other)[0]
    assert AutoModel.from_config(student.config).config.linear_rank == 5
