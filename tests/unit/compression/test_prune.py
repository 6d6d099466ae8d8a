"""Test that pruning reaches its target with the folder that it promises, and that what costs nothing is taken first."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

import ds_distill
from ds_distill.cli import main
from ds_distill.compression.calibration import collect_moments
from ds_distill.compression.prune_model import METHODS, plan_removals, prune_model
from ds_distill.config.pruning import read_shape, read_target
from ds_distill.data.batch import Batch
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.exporters.formats import FORMATS, export_formats
from ds_distill.exporters.parity import SAMPLE
from ds_distill.models.families import get_family, head_size
from ds_distill.models.folder import find_model_folder
from ds_distill.models.layer_shapes import LayerShape, is_pruned, layer_shapes
from ds_distill.models.loader_text import loader_code
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.saving import save_model_folder
from ds_distill.recipe import Data
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder

LENGTH = 32
IDS = torch.arange(5, 37).view(2, 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A BERT, a DistilBERT, and a text of a few hundred documents."""
    world = tmp_path_factory.mktemp("pruning")
    for family in ("bert", "distilbert"):
        save_encoder(family, world / family)
    lines = [line for line in SAMPLE.read_text().splitlines() if line.strip()]
    (world / "text.txt").write_text("\n\n".join(lines * 4))
    return world


def cut(world, output, target=2.0, family="bert", model=None, uniform=False, **options):
    pruning = ds_distill.Pruning(target, "flops", 1, LENGTH, uniform, sequences=64)
    recipe = ds_distill.Recipe(data=Data(sequence_length=LENGTH, heldout_fraction=0.1))
    given = {"output": output, "recipe": recipe, "corpus": [world / "text.txt"]} | options
    return ds_distill.prune(model or world / family, [pruning], **given)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_cut_reaches_its_target(world, tmp_path, family):
    summary = cut(world, tmp_path / "out", family=family, compare=True)
    model = ds_distill.load(summary["export"])
    assert type(model) is type(load_masked_lm(str(world / family))) and is_pruned(model.config)
    before, after = (
        forward_flops_per_token(each.config, LENGTH, 0.0) for each in (load_masked_lm(str(world / family)), model)
    )
    assert 2 <= before / after < 2.3 and summary["speedup"] == pytest.approx(before / after)
    assert summary["parameters"] == model.num_parameters() < summary["parameters_before"]
    assert [LayerShape(**layer) for layer in summary["layers"]] == layer_shapes(model.config)
    assert all(summary[f"loss_{name}"] > 0 for name in ("before", *METHODS))
    again = cut(world, tmp_path / "out", family=family, compare=True)
    assert again == summary, "finished before"
    with pytest.raises(UserError, match="target was 2.0"):
        cut(world, tmp_path / "out", 3.0, family)


def test_the_command_prints_what_a_cut_costs(world, tmp_path, capsys):
    words = ["--model", world / "bert", "--corpus", world / "text.txt", "--output", tmp_path / "out"]
    words += ["--target", "2x", "--runtime", "flops", "--shape", f"1x{LENGTH}", "--compare"]
    words += ["--sequences", "64", "--data.sequence_length", LENGTH, "--data.heldout_fraction", "0.1"]
    assert main(["prune", *map(str, words)]) == 0
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    for text in ("saliency, the rest corrected", "the first rows stay", "billions of operations", "--student.from"):
        assert text in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "2x", "3x"], "--target 2x 3x: several cuts are worth it only with training between them"),
        (["--target", "3x", "2x", "--distill"], "--target 3x 2x: each cut must be faster than the one before it"),
        (["--target", "2x", "3x", "--distill", "--uniform"], "--uniform: goes with one cut"),
        (["--target", "2x", "--student.num_layers", "2"], "student.num_layers = 2: the student is the pruned model"),
        (["--target", "1x"], "--target 1x: give how many times as fast"),
        (["--target", "2x", "--shape", "128"], "--shape 128: give sequences x tokens"),
        ([], "--target is missing"),
        (["--target", "2x", "--sequences", "0"], "--sequences 0: must be at least 1"),
    ],
)
def test_mistakes_in_options_get_a_sentence(world, tmp_path, capsys, words, message):
    given = ["--model", str(world / "bert"), "--corpus", str(world / "text.txt"), "--output", str(tmp_path / "out")]
    assert main(["prune", *given, *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_uniform_cut_loads_as_a_stock_class(world, tmp_path):
    summary = cut(world, tmp_path / "out", 1.5, uniform=True)
    model = AutoModelForMaskedLM.from_pretrained(summary["export"])
    assert not is_pruned(model.config) and model.config.num_attention_heads == 2
    assert model.config.intermediate_size < 64 and "fill-mask" in (Path(summary["export"]) / "README.md").read_text()
    assert torch.equal(model.eval()(IDS).logits, ds_distill.load(summary["export"])(IDS).logits)
    with pytest.raises(UserError, match="--target 9x: with all heads and equal feed-forwards the encoder is at most"):
        cut(world, tmp_path / "fast", 9.0, uniform=True)


def test_the_documentation_loads_the_folder_without_this_package(world, tmp_path):
    for number, (family, shapes) in enumerate(
        [
            ("bert", [LayerShape(1, 8), LayerShape(2, 64)]),
            ("bert", [LayerShape(0, 8), LayerShape(2, 0)]),
            ("distilbert", [LayerShape(0, 0), LayerShape(1, 5)]),
        ]
    ):
        model = AutoModelForMaskedLM.from_pretrained(world / family).eval()
        prune_model(model, shapes, "first")
        folder = tmp_path / str(number)
        save_model_folder(model, find_model_folder(str(world / family)).tokenizer, folder)
        code = loader_code(model).replace("{name}", f"name = {str(folder)!r}")
        assert "ds_distill" not in code
        scope = {}
        exec(code, scope)
        assert torch.equal(scope["model"](IDS).logits, model(IDS).logits)


def test_the_example_in_the_card_runs(world, tmp_path, monkeypatch, capsys):
    summary = cut(world, tmp_path / "out", target=3.0)
    (code,) = re.findall("```python\n(.*?)```", (Path(summary["export"]) / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(summary["export"])
    exec(code, {})
    assert "torch.Size([1, " in capsys.readouterr().out


def test_columns_and_heads_that_repeat_others_go_first_and_cost_nothing(world):
    model = AutoModelForMaskedLM.from_pretrained(world / "bert").eval()
    family, head = get_family(model), head_size(model)
    with torch.no_grad():
        for layer in family.get_layers(model):
            for name in family.projections:
                part = layer.get_submodule(name)
                part.weight[head:], part.bias[head:] = part.weight[:head].clone(), part.bias[:head].clone()
            inner = layer.get_submodule(family.ffn[0])
            inner.weight[32:], inner.bias[32:] = inner.weight[:32].clone(), inner.bias[:32].clone()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (64, LENGTH), generator=generator)
    moments = collect_moments(model, [Batch(ids, ids, None)])
    removals = plan_removals(model, moments)
    for removal in removals.values():
        half = len(removal.order) // 2
        assert removal.errors[half] < 0.02 * removal.errors[-1], "what damping leaves of nothing"
    losses = {}
    with torch.no_grad():
        expected = model(ids).logits
        for method in METHODS:
            cut = copy.deepcopy(model)
            prune_model(cut, [LayerShape(1, 32)] * 2, method, moments, removals)
            losses[method] = (cut(ids).logits - expected).square().mean() / expected.var()
    assert losses["saliency"] < 0.01 < min(losses["first"], losses["magnitude"])


def test_a_model_can_be_cut_again(world, tmp_path):
    first = cut(world, tmp_path / "first", target=1.5)
    second = cut(world, tmp_path / "second", target=3.0, model=first["export"])
    shapes = [[LayerShape(**layer) for layer in summary["layers"]] for summary in (first, second)]
    assert all(now <= before for pair in zip(*shapes, strict=True) for before, now in zip(*pair, strict=True))
    assert second["speedup"] >= 3, "relative to whole layers"
    assert layer_shapes(ds_distill.load(second["export"]).config) == shapes[1]


def test_a_table_that_was_measured_before_is_used(world, tmp_path):
    table = tmp_path / "table.json"
    first = cut(world, tmp_path / "one", latency_table=table)
    values = json.loads(table.read_text())
    values["heads"] = [0.0, 0.0, 0.0]  # free, so none is worth cutting
    table.write_text(json.dumps(values))
    second = cut(world, tmp_path / "two", latency_table=table, target=1.2)
    assert all(layer["heads"] == 2 for layer in second["layers"]) and first["layers"] != second["layers"]


def test_a_target_out_of_reach_is_refused(world, tmp_path):
    table = tmp_path / "table.json"
    cut(world, tmp_path / "one", latency_table=table)
    values = json.loads(table.read_text())
    values["base"] = {"2": sum(values["heads"]) + sum(values["feed_forward"].values())}
    table.write_text(json.dumps(values))
    with pytest.raises(UserError, match="--target 50x: without any heads and columns the encoder is at most"):
        cut(world, tmp_path / "two", latency_table=table, target=50.0)


@pytest.mark.parametrize("target", ["1x", "0.5x", "fast", "", "-2x", "nan", "1e9x", "2xx"])
def test_targets_that_are_no_speed_are_refused(target):
    with pytest.raises(UserError, match="--target .*such as 1.75x"):
        read_target(target, "--target")


def test_written_forms():
    assert read_target("1.75x", "") == read_target(1.75, "") == read_target("1.75 ×", "") == 1.75
    assert read_shape("08X128", "--shape") == "8x128"
    for wrong in ("128", "0x128", "1x", "1x1x1", "axb"):
        with pytest.raises(UserError, match="--shape .*such as 1x128"):
            read_shape(wrong, "--shape")


def test_other_families_are_refused(tmp_path):
    save_encoder("modernbert", tmp_path / "model")
    with pytest.raises(
        UserError, match="model_type = modernbert: its heads .* give a model of one of the families bert"
    ):
        cut(tmp_path, tmp_path / "out", model=tmp_path / "model", corpus=[SAMPLE])


def test_a_pruned_folder_is_exported_to_every_format(world, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(world / "bert").eval()
    prune_model(model, [LayerShape(1, 24), LayerShape(0, 0)], "first")
    folder = tmp_path / "pruned"
    save_model_folder(model, find_model_folder(str(world / "bert")).tokenizer, folder)
    formats = [name for name, entry in FORMATS.items() if not entry.unavailable_reason()]
    summary = export_formats(str(folder), formats, tmp_path / "out", text=[])
    assert set(summary["formats"]) == set(formats)
    for name, row in summary["formats"].items():
        assert row["max_difference"] < (1e-4 if FORMATS[name].exact else 0.2) * row["max_output"], name
    assert torch.equal(ds_distill.load(tmp_path / "out")(IDS).logits, model(IDS).logits)
