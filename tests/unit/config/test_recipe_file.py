"""Recipes are found by path or by the name of a shipped one, and read alike by --config and by Recipe.load."""

from pathlib import Path

import pytest

from ds_distill.cli.arguments import SECTIONS, build_recipe
from ds_distill.cli.commands import COMMANDS
from ds_distill.cli.parser import build_parser
from ds_distill.config.recipe_file import COMMAND_OPTIONS, DEEPSPEED, RECIPES, STUDIES, shipped_files
from ds_distill.recipe import Recipe, Training
from ds_distill.study.jobs import make_jobs
from ds_distill.study.plan import Study
from ds_distill.utils.errors import UserError
from tests.start import ROOT


def parse(command: str, *words: str):
    return build_parser().parse_args([command, *words])[command]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """Work in a folder that is not the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shipped_names_are_those_of_the_files():
    names = shipped_files(RECIPES, STUDIES, DEEPSPEED)
    files = {file for file in (ROOT / "ds_configs").rglob("*") if file.is_file()}
    assert set(names.values()) == files and len(names) == len(files), "no two files share a name"


@pytest.mark.parametrize("name", sorted(shipped_files(RECIPES)))
def test_every_recipe_is_the_same_by_name_by_path_and_in_python(name):
    command = "demo" if name.startswith("demo") else "distill"
    by_name = build_recipe(parse(command, "--config", name))
    assert by_name == build_recipe(parse(command, "--config", str(ROOT / "ds_configs" / f"{name}.yaml")))
    assert by_name == build_recipe(parse(command, "--config", f"ds_configs/{name}.yaml"))
    assert by_name == Recipe.load(name) == Recipe.load(ROOT / "ds_configs" / f"{name}.yaml")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_names_and_lists_those_that_there_are(name):
    shipped = shipped_files(STUDIES if name == "study" else RECIPES)
    with pytest.raises(UserError, match=f"--config tiny_tokens: .*names are {', '.join(sorted(shipped))}; .*/tiny_to"):
        parse(name, "--config", "tiny_tokens")
    if name == "study":
        assert parse(name, "--config", "retention").base.endswith("few_tokens.yaml")
    elif name in ("distill", "pretrain", "prepare", "estimate", "evaluate"):
        assert parse(name, "--config", "few_tokens").data.sequence_length == 128


def test_a_file_of_that_name_counts_as_a_path_with_its_suffix_or_folder(elsewhere):
    for name in ("few_tokens", "few_tokens.yaml"):
        (elsewhere / name).write_text("training: {seed: 77}\n")
    assert parse("distill", "--config", "few_tokens").training.seed == 0
    for path in ("few_tokens.yaml", "./few_tokens"):
        assert parse("distill", "--config", path).training.seed == 77 == Recipe.load(path).training.seed


def test_deepspeed_settings_and_a_studys_base_have_names_too():
    assert (
        Training(deepspeed="zero2").deepspeed_json()
        == Training(deepspeed=str(ROOT / "ds_configs/deepspeed/zero2.json")).deepspeed_json()
    )
    with pytest.raises(UserError, match="training.deepspeed = zero4: .*zero0, zero1, zero2, zero2_offload, zero3"):
        Recipe(training=Training(deepspeed="zero4")).check()
    assert Study("few_tokens", "T", ["a"], [], None, {"a": {}}, []).base == str(ROOT / "ds_configs/few_tokens.yaml")
    with pytest.raises(UserError, match="base: zero2: no shipped file has this name"):
        Study("zero2", "T", ["a"], [], None, {"a": {}}, [])


def test_a_recipe_builds_on_the_one_that_it_names(elsewhere):
    """What the named one says of the same section stays, and the file's own keys win."""
    (elsewhere / "sub").mkdir()
    (elsewhere / "sub" / "base.yaml").write_text("config: few_tokens\ntraining: {epochs: 7, seed: 5}\ninput: [a]\n")
    (elsewhere / "sub" / "top.yaml").write_text("training.seed: 6\nconfig: base.yaml\ncorpus: [b]\n")
    options = parse("distill", "--config", "sub/top.yaml")
    recipe = Recipe.load("sub/top.yaml")
    assert build_recipe(options) == recipe and options.corpus == ["b"]
    assert (recipe.training.seed, recipe.training.epochs, recipe.losses.cosine) == (6, 7, 200)
    study = Study("sub/top.yaml", "T", ["a"], [], None, {"a": {}}, [])
    words = make_jobs(study, elsewhere)[0].argv
    assert (
        words[words.index("--data.sequence_length") + 1] == "128" and words[words.index("--training.seed") + 1] == "6"
    )
    (elsewhere / "self.yaml").write_text("config: self.yaml\n")
    for load in (lambda: parse("distill", "--config", "self.yaml"), lambda: Recipe.load("self.yaml")):
        with pytest.raises(UserError, match="self.yaml: config: self.yaml: the file includes itself"):
            load()


@pytest.mark.parametrize(
    "text, message",
    [
        ("trainig: {seed: 1}", "recipe r.yaml: trainig: no such"),
        ("training: {lr: 1}", "recipe r.yaml: training.lr: .*training.learning_rate"),
        ("training: {seed: x}", "recipe r.yaml: training.seed: x is not a whole number"),
        ("training: {epochs: 0}", "training.epochs = 0: must be between"),
        ("config: nowhere.yaml", "recipe r.yaml: config: nowhere.yaml: no such file"),
        ("config: .", "recipe r.yaml: config: .: no such file"),
        ("config: nowhere", "recipe r.yaml: config: nowhere: no shipped file"),
        ("training: 5", "recipe r.yaml: training: "),
    ],
)
def test_a_mistake_in_a_recipe_is_named_from_python(elsewhere, text, message):
    (elsewhere / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        Recipe.load("r.yaml")


def test_the_options_that_a_recipe_may_hold_are_those_of_the_commands():
    options = {
        option.removeprefix("--")
        for parser in build_parser()._subcommands_action._name_parser_map.values()
        for action in parser._actions
        if "training" in {other.dest for other in parser._actions}
        for option in action.option_strings
        if option.startswith("--") and "." not in option
    }
    settings = {*SECTIONS, "stages", "stages+"}
    assert set(COMMAND_OPTIONS) == options - settings - {"config", "help", "print_config"}
