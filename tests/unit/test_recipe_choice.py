import json

import pyarrow
import pyarrow.parquet
import pytest

from ds_distill.cli import estimate
from ds_distill.cli.arguments import build_recipe, leaves_losses_open
from ds_distill.cli.parser import build_parser
from ds_distill.estimate import plan as plan_module
from ds_distill.estimate import report as report_module
from ds_distill.recipe import Losses, Recipe, Stage, Training
from ds_distill.recipe_choice import FEW_TOKENS, choose_losses

FEW_TOKENS_LOSSES = Losses(kl_tokens="masked", cosine=200.0)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("some words of a small text\n" * 1000)
    return str(file)


def choose(tmp_path, corpus=(), tokens=None, **training):
    return choose_losses(Recipe(training=Training(**training)), corpus=corpus, tokens=tokens, output=tmp_path / "run")


def test_few_tokens_have_the_losses_of_their_recipe():
    assert Recipe.load("few_tokens").losses == FEW_TOKENS_LOSSES != Losses()


def test_stages_leave_the_choice_open_unless_they_have_losses_of_their_own():
    assert Recipe().leaves_losses_open and not Recipe(losses=FEW_TOKENS_LOSSES).leaves_losses_open
    assert Recipe(stages=[Stage(0.5), Stage(0.5, quantize="onnx-int8")]).leaves_losses_open
    assert not Recipe(stages=[Stage(0.5, {"mlm": 0.0}), Stage(0.5)]).leaves_losses_open


@pytest.mark.parametrize(
    ("words", "is_open"),
    [
        ([], True),
        (["--training.max_tokens", "1M", "--student.num_layers=2"], True),
        (["--losses.kl_tokens", "all"], False),  # the default, and typed all the same
        (["--losses={kl_tokens: all}"], False),
        (["--config", "few_tokens"], False),
    ],
)
@pytest.mark.parametrize("command", ["distill", "prune", "estimate"])
def test_losses_are_chosen_only_where_a_user_leaves_them_open(command, words, is_open):
    options = build_parser().parse_args([command, *words])[command]
    assert leaves_losses_open(options, build_recipe(options)) == is_open


@pytest.mark.parametrize(("tokens", "kl_tokens"), [("1M", "masked"), ("3.2B", "all")])
@pytest.mark.parametrize("option", ["--tokens", "--training.max_tokens"])
def test_an_estimate_is_of_the_losses_that_distill_would_choose(capsys, monkeypatch, tokens, kl_tokens, option):
    planned = []
    monkeypatch.setattr(plan_module, "plan", lambda recipe, *_: planned.append(recipe) or {})
    monkeypatch.setattr(report_module, "format_plan", str)
    words = ["--teacher", "bert-base-uncased", "--gpu", "h100", "--tokens", "3.2B", option, tokens]
    estimate.run(build_parser().parse_args(["estimate", *words])["estimate"])
    assert planned[0].losses.kl_tokens == kl_tokens


@pytest.mark.parametrize(
    "training, few",
    [
        ({}, True),
        ({"epochs": 10_000}, False),  # of about 6,000 tokens
        ({"max_tokens": FEW_TOKENS - 1, "epochs": 10_000}, True),
        ({"max_tokens": FEW_TOKENS}, False),
    ],
)
def test_the_choice_follows_the_number_of_tokens(tmp_path, text, training, few):
    assert choose(tmp_path, [text], **training) == (FEW_TOKENS_LOSSES if few else Losses())


def test_texts_are_read_as_the_recipe_says(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["some words"]}), tmp_path / "rows.parquet")
    recipe = Recipe()
    recipe.data.column = "body"
    corpus = [tmp_path / "rows.parquet"]
    assert choose_losses(recipe, corpus=corpus, tokens=None, output=tmp_path / "run") == FEW_TOKENS_LOSSES


def test_prepared_tokens_are_counted_and_data_sets_of_the_hub_are_many(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"real_tokens": {"train": FEW_TOKENS // 3 - 1}}))
    assert choose(tmp_path, tokens=tmp_path) == FEW_TOKENS_LOSSES
    assert choose(tmp_path, tokens=tmp_path, epochs=4) == Losses()
    assert choose(tmp_path, ["hf:somebody/something"]) == Losses()


@pytest.mark.parametrize("kl_tokens", ["masked", "all"])
def test_a_run_keeps_its_losses(tmp_path, text, kl_tokens):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"losses.kl_tokens": kl_tokens}))
    for count in (1000, 10 * FEW_TOKENS):
        assert choose(tmp_path, [text], max_tokens=count).kl_tokens == kl_tokens
