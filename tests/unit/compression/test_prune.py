"""Test that pruning reaches its target with the folder that it promises, and that what costs nothing is taken first."""

import copy
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig

import ds_distill
from ds_distill.cli import main
from ds_distill.cli import prune as command
from ds_distill.cli.parser import build_parser
from ds_distill.compression.calibration import collect_moments
from ds_distill.compression.latency_table import LatencyTable
from ds_distill.compression.prune_model import METHODS, plan_removals, prune_model
from ds_distill.compression.prune_width import check_width, prune_width, rate_coordinates
from ds_distill.compression.surgeon import Removal
from ds_distill.config.pruning import Pruning, read_shape, read_target
from ds_distill.data.batch import Batch
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.exporters.formats import FORMATS, export_formats
from ds_distill.exporters.parity import SAMPLE
from ds_distill.jobs import prune as prune_job
from ds_distill.jobs.prune import choose_shapes
from ds_distill.models.families import get_family, head_size
from ds_distill.models.folder import find_model_folder
from ds_distill.models.layer_shapes import LayerShape, is_pruned, layer_shapes
from ds_distill.models.loader_text import loader_code
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.saving import save_model_folder
from ds_distill.models.student_plan import plan_student
from ds_distill.recipe import Data
from ds_distill.utils.errors import UserError
from tests.tiny import make_embedder, read_embedder, save_encoder

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


def cut(world, output, target=2.0, model=None, uniform=False, hidden_size=None, **options):
    pruning = Pruning(target, "flops", 1, LENGTH, uniform, 64, hidden_size)
    recipe = ds_distill.Recipe(data=Data(sequence_length=LENGTH, heldout_fraction=0.1, workers=1))
    given = {"output": output, "recipe": recipe} | options
    return ds_distill.prune(model or world / "bert", [pruning], **given)


@pytest.fixture(scope="module")
def first(world):
    """The summary of a cut; further ones take its text and its table."""
    return cut(world, world / "first", compare=True, corpus=[world / "text.txt"], latency_table=world / "table.json")


def test_a_cut_reaches_its_target(world, first):
    model, whole = ds_distill.load(first["export"]), load_masked_lm(str(world / "bert"))
    assert type(model) is type(whole) and is_pruned(model.config)
    before, after = (forward_flops_per_token(each.config, LENGTH, 0.0) for each in (whole, model))
    assert 2 <= before / after < 3 and first["speedup"] == pytest.approx(before / after)
    assert first["parameters"] == model.num_parameters() < first["parameters_before"]
    assert [LayerShape(**layer) for layer in first["layers"]] == layer_shapes(model.config)
    assert all(first[f"loss_{name}"] > 0 for name in ("before", *METHODS))
    given = {"compare": True, "tokens": first["tokens"], "latency_table": world / "table.json"}
    assert cut(world, world / "first", **given) == first, "finished before"
    shutil.copytree(world / "first", world / "moved")
    moved = cut(world, world / "moved", **given)
    assert moved["export"] == str(world / "moved" / "export") and moved["cost"] == first["cost"]
    with pytest.raises(UserError, match="target was 2.0"):
        cut(world, world / "first", 3.0, **given)


def test_the_command_prints_what_a_cut_costs(world, first, tmp_path, capsys):
    words = ["--model", world / "bert", "--tokens", first["tokens"], "--output", tmp_path / "out"]
    words += ["--latency_table", world / "table.json"]
    words += ["--target", "2x", "--runtime", "flops", "--shape", f"1x{LENGTH}", "--compare"]
    words += ["--sequences", "64"]
    assert main(["prune", *map(str, words)]) == 0
    printed = capsys.readouterr()
    shown = printed.out + printed.err
    for text in ("saliency, the rest corrected", "the first rows stay", "billions of operations"):
        assert text in shown
    options = SimpleNamespace(distill=False, model=str(world / "bert"), output="runs/pruned")
    assert f"--student.from {first['export']}" in " ".join(command.closing(options, first).replace("\\\n", " ").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "2x", "3x"], "--target 2x 3x: several cuts are worth it only with training between them"),
        (["--target", "3x", "2x", "--distill"], "--target 3x 2x: each cut must be faster than the one before it"),
        (["--target", "2x", "3x", "--distill", "--uniform"], "--uniform and --hidden_size: go with one --target"),
        (["--target", "2x", "--student.num_layers", "2"], "student.num_layers = 2: the student is the pruned model"),
        (["--target", "1x"], "--target 1x: give how many times as fast"),
        (["--target", "2x", "--shape", "128"], "--shape 128: give sequences x tokens"),
        ([], "--target is missing"),
        (["--target", "2x", "--sequences", "0"], "--sequences 0: must be at least 1"),
        (["--target", "2x", "--training.max_tokens", "9"], "training.max_tokens = 9: nothing is trained without --dis"),
        (
            ["--target", "2x", "--student.freeze_positions", "true"],
            "student.freeze_positions = True: nothing is trained",
        ),
        (["--target", "2x", "--losses.match", "[{loss: relation}]"], "losses.match: nothing is trained without --dist"),
        (["--target", "2x", "--data.clean_fraction", "0.5"], "data.clean_fraction = 0.5: nothing is trained"),
        (["--target", "2x", "--hidden_size", "0"], "--hidden_size 0: must be 1 or more; give a multiple of"),
        (["--hidden_size", "0"], "--hidden_size 0: must be"),
        (["--target", "2x", "--hidden_size", "-4"], "--hidden_size -4: must be"),
        (["--hidden_size", "16", "--uniform"], "--uniform: is for cuts of --target, which is missing"),
        (["--hidden_size", "16", "--compare"], "--compare: is for cuts of --target, which is missing"),
        (["--hidden_size", "16", "--latency_table", "t.json"], "--latency_table: is for cuts of --target, which"),
        (["--hidden_size", "16", "--shape", "1x64"], "--shape: is for cuts of --target, which is missing"),
        (["--target", "2x", "--tokens", "t"], "is not read with --tokens t; leave one of them out"),
        (["--target", "2x", "--heldout", "more.txt"], "--heldout: not read by prune"),
        (["--target", "2x", "--teacher", "t"], "--teacher: not read by prune"),
    ],
)
def test_mistakes_in_options_get_a_sentence(world, tmp_path, capsys, words, message):
    given = ["--model", str(world / "bert"), "--corpus", str(world / "text.txt"), "--output", str(tmp_path / "out")]
    assert main(["prune", *given, *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


RECIPE = "losses: {kl: 3.0}\ntraining: {max_tokens: 1000, seed: 3}\nteacher: [t]\nheldout: [more.txt]\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], None),
        (["--training.seed", "5", "--data.sequence_length", "32"], None),
        (["--training.max_tokens", "9"], "training.max_tokens: nothing is trained without --distill"),
        (["--training.learning_rate=1e-3"], "training.learning_rate: nothing is trained"),
        (["--losses.match", "[{loss: relation}]"], "losses.match: nothing is trained"),
        (["--losses", "{kl: 2.0}"], "losses.kl: nothing is trained"),
        (["--training", "{seed: 5}"], None),
        (["--stages", "[{share: 1.0}]"], "stages: nothing is trained"),
        (["--data.weights", "[2.0]"], "data.weights: nothing is trained"),
        (["--training.max_tokens", "9", "--distill"], None),
        (["--teacher", "u"], "--teacher: not read by prune"),
    ],
)
@pytest.mark.parametrize("recipe_first", [True, False])
def test_a_recipe_may_be_one_for_a_training_but_what_is_typed_beside_it_may_not(tmp_path, words, message, recipe_first):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = ["--config", str(tmp_path / "recipe.yaml")]
    given = ["prune", "--model", "m", "--corpus", "a.txt", "--target", "2x", "--output", str(tmp_path / "out")]
    words = [*recipe, *given[1:], *words] if recipe_first else [*given[1:], *words, *recipe]
    options = build_parser().parse_args(["prune", *words])["prune"]
    if message is None:
        command.check(options)
    else:
        with pytest.raises(UserError, match=re.escape(message)):
            command.check(options)


@pytest.mark.parametrize("shape", [{"uniform": True, "target": 1.5}, {"target": 1.0, "hidden_size": 16}])
def test_a_sentence_embedder_stays_one_where_its_class_loads_it(world, first, tmp_path, shape):
    model = AutoModelForMaskedLM.from_pretrained(world / "bert").base_model
    save_model_folder(model, find_model_folder(str(world / "bert")).tokenizer, tmp_path / "given")
    make_embedder(tmp_path / "given")
    given = {"tokens": first["tokens"]} | ({} if "hidden_size" in shape else {"latency_table": world / "table.json"})
    export = Path(cut(world, tmp_path / "out", model=tmp_path / "given", **shape, **given)["export"])
    kinds, pooling = read_embedder(export)
    assert kinds == ["Transformer", "Pooling", "Normalize"] and pooling["pooling_mode_cls_token"]
    assert pooling["word_embedding_dimension"] == AutoModel.from_pretrained(export).config.hidden_size
    assert "- sentence-transformers" in (export / "README.md").read_text()


def make_pruned(world, folder, shapes):
    model = AutoModelForMaskedLM.from_pretrained(world / "bert")
    prune_model(model, shapes, "first")
    save_model_folder(model, find_model_folder(str(world / "bert")).tokenizer, folder)
    return model


def test_mistakes_are_told_before_any_text_is_read(world, first, tmp_path):
    make_pruned(world, tmp_path / "pruned", [LayerShape(1, 8), LayerShape(0, 64)])
    AutoModelForMaskedLM.from_pretrained(world / "bert").base_model.save_pretrained(tmp_path / "bare")
    find_model_folder(str(world / "bert")).tokenizer.save_pretrained(tmp_path / "bare")
    bert, flops = world / "bert", Pruning(2.0, "flops", 1, LENGTH, sequences=64)
    recipe = ds_distill.Recipe(data=Data(sequence_length=LENGTH))
    for model, cuts, options, message in (
        (tmp_path / "pruned", [replace(flops, uniform=True)], {}, "--uniform: the model's layers were pruned before"),
        (bert, [replace(flops, length=65)], {}, "--shape 1x65: the model has 64 positions"),
        (tmp_path / "bare", [flops], {"compare": True}, "--compare: .*bare has no masked-LM head"),
        (bert, [], {}, "--target is missing"),
        (bert, [replace(flops, target=1.0)], {}, "--target is missing"),
        (bert, [flops, replace(flops, target=3.0)], {}, "--target 2x 3x: several cuts are worth it only with training"),
        (bert, [flops, flops], {"distill": True}, "--target 2x 2x: each cut must be faster"),
        (bert, [replace(flops, batch=0)], {}, "--shape 0x32: give sequences x tokens"),
    ):
        with pytest.raises(UserError, match=message):
            ds_distill.prune(
                model, cuts, output=tmp_path / "out", recipe=recipe, corpus=[world / "text.txt"], **options
            )
    assert not (tmp_path / "out").exists()


def test_text_without_a_held_out_part_is_refused_before_anything_is_measured(world, tmp_path):
    recipe = ds_distill.Recipe(data=Data(sequence_length=LENGTH, heldout_fraction=0.0, workers=1))
    with pytest.raises(UserError, match="no held-out text"):
        cut(world, tmp_path / "out", recipe=recipe, corpus=[world / "text.txt"])
    assert not (tmp_path / "out" / "latency.json").exists()


def test_equal_layers_of_one_cut_of_several_are_still_parts_of_the_whole(world, tmp_path):
    model = make_pruned(world, tmp_path / "pruned", [LayerShape(2, 24)] * 2)
    assert model.config.intermediate_size == 64 and layer_shapes(model.config) == [LayerShape(2, 24)] * 2
    prune_model(model, [LayerShape(2, 16)] * 2, "first", uniform=True)
    assert model.config.intermediate_size == 16 and not is_pruned(model.config)


def test_documents_that_do_not_see_each_other_in_training_do_not_in_calibration(world):
    model = load_masked_lm(str(world / "bert"))
    ids, documents = torch.arange(5, 21)[None], torch.arange(16)[None] // 8
    apart = Batch(ids, ids, None, document_ids=documents)
    positions = model.bert.embeddings.position_embeddings.weight.data
    positions[8:16] = positions[:8]  # so that the second document is as if it stood alone
    alone = Batch(ids.view(2, 8), ids.view(2, 8), None)
    for part, moments in collect_moments(model, [apart]).items():
        torch.testing.assert_close(moments.mean, collect_moments(model, [alone])[part].mean)
    torch.testing.assert_close(rate_coordinates(model, [apart]), rate_coordinates(model, [alone]))


def test_the_loss_before_is_what_evaluate_measures(world, first, tmp_path):
    data = Data(sequence_length=LENGTH, heldout_fraction=0.1, attend_across_documents=False)
    recipe = ds_distill.Recipe(data=data)
    given = {"tokens": first["tokens"], "recipe": recipe}
    summary = cut(world, tmp_path / "out", latency_table=world / "table.json", **given)
    [measured] = ds_distill.evaluate([world / "bert"], **given)
    assert summary["loss_before"] == pytest.approx(measured.heldout_mask_loss, rel=1e-5)
    assert summary["loss_before"] != pytest.approx(first["loss_before"], rel=1e-4), "the documents see each other there"


def test_factors_are_pruned_as_whole_layers_and_it_is_said(world, first, tmp_path, capsys):
    folder = shutil.copytree(world / "bert", tmp_path / "factored")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"linear_rank": 4}))
    cut(world, tmp_path / "out", model=folder, tokens=first["tokens"], latency_table=world / "table.json")
    assert "factors of rank 4, are pruned as whole ones" in " ".join(capsys.readouterr().err.split())


def test_a_uniform_cut_loads_as_a_stock_class(world, first, tmp_path):
    given = {"tokens": first["tokens"], "latency_table": world / "table.json"}
    summary = cut(world, tmp_path / "out", 1.5, uniform=True, **given)
    model = AutoModelForMaskedLM.from_pretrained(summary["export"])
    assert not is_pruned(model.config) and model.config.num_attention_heads == 2
    assert model.config.intermediate_size < 64 and "fill-mask" in (Path(summary["export"]) / "README.md").read_text()
    assert torch.equal(model.eval()(IDS).logits, ds_distill.load(summary["export"])(IDS).logits)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_a_narrower_model_has_the_coordinates_that_are_used_most(world, tmp_path, family):
    if family == "electra":
        save_encoder(family, world / family)
    model = AutoModelForMaskedLM.from_pretrained(world / family).eval()
    ids = torch.randint(5, 60, (8, LENGTH), generator=torch.Generator().manual_seed(0))
    batches = [Batch(ids, ids, None)]
    rates = rate_coordinates(model, batches)
    states = get_family(model).get_encoder(model)(ids, output_hidden_states=True).hidden_states
    states = torch.stack([state.detach().double().abs().mean((0, 1)) for state in states])
    torch.testing.assert_close(rates, (states / states.mean(1, keepdim=True)).sum(0))
    kept = rates.topk(16).indices.sort().values
    narrow = prune_width(copy.deepcopy(model), 16, batches, collect_moments(model, batches))
    assert get_family(narrow).dims(narrow.config)[1:4] == (1, 16, 64) and not is_pruned(narrow.config)
    inner = get_family(model).ffn[0]
    before, after = (get_family(each).get_layers(each)[0].get_submodule(inner).weight for each in (model, narrow))
    assert torch.equal(after, before[:, kept])
    tokenizer = find_model_folder(str(world / family)).tokenizer
    save_model_folder(narrow, tokenizer, tmp_path / "narrow")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "narrow").eval()
    assert torch.equal(loaded(IDS).logits, narrow(IDS).logits)


def test_a_width_alone_needs_no_times(world, first, tmp_path, monkeypatch):
    monkeypatch.setattr("ds_distill.compression.latency_table.measure_encoders", None)
    summary = ds_distill.prune(world / "bert", [Pruning(1.0, hidden_size=16)], output=tmp_path, tokens=first["tokens"])
    assert AutoModelForMaskedLM.from_pretrained(summary["export"]).config.hidden_size == 16
    assert summary["runtime"] == "flops", "and a call of 128 tokens is longer than the model reads"


def test_a_width_comes_before_a_target(world, first, tmp_path):
    summary = cut(world, tmp_path / "out", 1.5, hidden_size=16, tokens=first["tokens"])
    model = ds_distill.load(summary["export"])
    assert model.config.hidden_size == 16 and summary["speedup"] >= 1.5
    assert summary["mflops_per_token"] < summary["mflops_per_token_before"] / 3


def test_widths_that_cannot_be_are_refused(world, first):
    config = load_masked_lm(str(world / "bert")).config
    for width, message in ((32, "below its width 32"), (8, "multiple of the model's head size 16")):
        with pytest.raises(UserError, match=f"--hidden_size {width}: give a .*{message}"):
            check_width(config, width)
    with pytest.raises(UserError, match="--hidden_size 16: the model's layers were pruned before"):
        check_width(ds_distill.load(first["export"]).config, 16)


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


def test_the_example_in_the_card_runs(first, monkeypatch, capsys):
    (code,) = re.findall("```python\n(.*?)```", (Path(first["export"]) / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(first["export"])
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
    losses = {}
    with torch.no_grad():
        expected = model(ids).logits
        for method in METHODS:
            cut = copy.deepcopy(model)
            prune_model(cut, [LayerShape(1, 32)] * 2, method, moments, removals)
            losses[method] = (cut(ids).logits - expected).square().mean() / expected.var()
    assert losses["saliency"] < 0.01 < min(losses["first"], losses["magnitude"])


def test_a_model_can_be_cut_again(world, first, tmp_path):
    given = {"tokens": first["tokens"], "latency_table": world / "table.json"}
    second = cut(world, tmp_path / "second", 3.0, model=first["export"], **given)
    shapes = [[LayerShape(**layer) for layer in summary["layers"]] for summary in (first, second)]
    assert all(now <= before for pair in zip(*shapes, strict=True) for before, now in zip(*pair, strict=True))
    assert second["speedup"] >= 3, "relative to whole layers"
    assert layer_shapes(ds_distill.load(second["export"]).config) == shapes[1]


def test_the_pruned_encoder_itself_is_measured(world, first, tmp_path, monkeypatch, capsys):
    """The table's own times are not: here it says twice as fast, and the encoders take as long as each other."""
    table = LatencyTable.load(world / "table.json", load_masked_lm(str(world / "bert")).config, "flops", 1, LENGTH)
    replace(table, runtime="torch").save(tmp_path / "table.json")
    measured = []

    def measure(configs, runtime, batch, length):
        measured.extend(configs.values())
        return dict.fromkeys(configs, 3.0)

    monkeypatch.setattr(prune_job, "measure_encoders", measure)
    pruning = Pruning(2.0, "torch", 1, LENGTH, False, 64)
    recipe = ds_distill.Recipe(data=Data(sequence_length=LENGTH, heldout_fraction=0.1, workers=1))
    given = {"tokens": first["tokens"], "latency_table": tmp_path / "table.json", "recipe": recipe}
    summary = ds_distill.prune(first["export"], [pruning], output=tmp_path / "again", **given)
    assert summary["layers"] == first["layers"] and "nothing is taken out" in capsys.readouterr().err and not measured
    summary = ds_distill.prune(world / "bert", [pruning], output=tmp_path / "out", **given)
    assert "measured to be 1.00 times as fast, where the latency table says 2." in capsys.readouterr().err
    assert not is_pruned(measured[0]) and is_pruned(measured[1]) and summary["measured_speedup"] == 1
    assert summary["measured_ms_before"] == summary["measured_ms"] == 3
    deeper = ds_distill.prune(first["export"], [replace(pruning, target=3.0)], output=tmp_path / "deeper", **given)
    assert "measured_ms_before" not in deeper and deeper["measured_ms"] == 3, "of whole layers, not of the given model"
    assert "is 1 times as fast" in (Path(summary["export"]) / "README.md").read_text()


CONFIG = BertConfig(num_hidden_layers=2, num_attention_heads=2, intermediate_size=4)
TABLE = LatencyTable({}, "flops", 1, LENGTH, {2: 2.0}, [0.0, 1.0, 2.0], {0: 0.0, 2: 1.0, 4: 3.0})
REMOVALS = {
    (0, "heads"): Removal([0, 1], [0.0, 5.0, 50.0]),
    (0, "feed_forward"): Removal([0, 1, 2, 3], [0.0, 0.1, 0.2, 3.0, 30.0]),
    (1, "heads"): Removal([1, 0], [0.0, 0.5, 1.0]),
    (1, "feed_forward"): Removal([3, 2, 1, 0], [0.0, 1.0, 2.0, 3.0, 40.0]),
}


@pytest.mark.parametrize(
    ("target", "shapes"),
    [
        (1, [(2, 4), (2, 4)]),
        (1.2, [(2, 2), (2, 4)]),
        (12 / 7, [(2, 2), (1, 2)]),
        (2, [(2, 2), (0, 2)]),
        (3, [(1, 0), (0, 2)]),
    ],
)
def test_the_least_salient_parts_go_for_the_time_that_they_take(target, shapes):
    found = choose_shapes(CONFIG, TABLE, REMOVALS, Pruning(target))
    assert found == [LayerShape(*shape) for shape in shapes] and 12 / TABLE.of_shapes(found) >= target


@pytest.mark.parametrize("target", [6, 1000])
def test_a_cut_that_leaves_nothing_is_refused(target):
    table = replace(TABLE, base={2: 0.0}) if target == 1000 else TABLE
    with pytest.raises(UserError, match=f"--target {target}x: would leave no heads and no columns in any layer"):
        choose_shapes(CONFIG, table, REMOVALS, Pruning(target))


def test_what_costs_no_time_stays():
    table = replace(TABLE, heads=[0.0, 0.0, 0.0])
    assert all(shape.heads == 2 for shape in choose_shapes(CONFIG, table, REMOVALS, Pruning(2)))


def test_uniform_shapes_have_all_heads():
    assert choose_shapes(CONFIG, TABLE, REMOVALS, Pruning(1.3, uniform=True)) == [LayerShape(2, 2)] * 2


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (Pruning(6.1), "--target 6.1x: without any heads and columns the encoder is at most 6.00 times as fast"),
        (Pruning(2, uniform=True), "--target 2x: with all heads and equal feed-forwards the encoder is at most 1.50"),
    ],
)
def test_a_target_out_of_reach_is_refused(pruning, message):
    with pytest.raises(UserError, match=message):
        choose_shapes(CONFIG, TABLE, REMOVALS, pruning)


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


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"intermediate_size": 32}, "student.intermediate_size = 32"),
        ({"hidden_size": 16}, "student.hidden_size = 16"),
        ({"hidden_size": 16, "num_attention_heads": 1}, "student.hidden_size = 16"),
    ],
)
def test_a_narrower_student_of_a_pruned_teacher_is_refused_by_the_setting_that_was_given(first, given, named):
    with pytest.raises(UserError, match=f"{named}: the teacher's layers were pruned to widths of their own"):
        plan_student(ds_distill.load(first["export"]).config, **given)
