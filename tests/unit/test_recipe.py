"""Every shipped recipe can be parsed and is understood as intended."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig

from ds_distill.cli.arguments import SECTIONS, build_recipe
from ds_distill.cli.parser import build_parser, check_command
from ds_distill.data.hub_sets import _HUB
from ds_distill.losses.terms import make_matches
from ds_distill.models.student_plan import plan_student, resolve_layer_map
from ds_distill.recipe import Recipe, Student, Training
from ds_distill.study.paper import PAPER_ABLATION
from ds_distill.study.plan import Study
from ds_distill.study.student_tables import get_differing_settings
from ds_distill.utils.errors import UserError

FOLDER = Path(__file__).parents[2] / "ds_configs"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no path in a recipe may depend on the working folder
    commands = {"demo.yaml": "run", "demo_from_scratch.yaml": "run", "demo_teacher.yaml": "pretrain"}
    command = commands.get(name, "distill")
    options = build_parser().parse_args([command, "--config", str(FOLDER / name), "--output", "out"])[command]
    recipe = build_recipe(options)
    recipe.check()
    given = yaml.safe_load((FOLDER / name).read_text())
    for room in SECTIONS:
        for key, value in (given.get(room) or {}).items():
            meant = getattr(getattr(recipe, room), key)
            if key == "match":  # the entries of the file leave keys out
                meant = [
                    {given_key: getattr(match, given_key) for given_key in entry}
                    for match, entry in zip(meant, value, strict=True)
                ]
            assert (list(meant) if isinstance(value, list) else meant) == value
    for entry in given.get("corpus", []):
        assert _HUB.match(entry)
    if recipe.data.weights:
        assert len(recipe.data.weights) == len(given["corpus"])
    if isinstance(recipe.student.init_layers, list):
        assert resolve_layer_map("every_other", 12, 6) == recipe.student.init_layers
    lines = (FOLDER / name).read_text().splitlines()
    assert lines[0].startswith("# ") and sum("  # " in line for line in lines) >= 3, (
        "a recipe says where its numbers come from"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_terms_of_a_recipe_fit_bert_base_and_its_student(name):
    recipe, teacher = Recipe.load(FOLDER / name), BertConfig()
    layer_map, student = plan_student(teacher, **asdict(recipe.student))
    matches = make_matches(recipe.losses, student, teacher, layer_map)
    sites = {"minilmv2_base.yaml": 3, "inner_layers.yaml": 3 + 6, "tinybert_general.yaml": 2 * 6 + 7}
    assert sum(len(match.sites) for match in matches.values()) == sites.get(name, len(matches))


def test_the_baseline_differs_in_the_teacher_alone():
    real, baseline = (
        yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("small_real", "baseline_no_teacher")
    )
    assert real.pop("losses") | {"kl": 0.0, "cosine": 0.0} == baseline.pop("losses") | {"temperature": 2.0}
    assert real == baseline


def test_the_readme_names_every_recipe():
    text = (FOLDER.parent / "README.md").read_text()
    assert [name for name in RECIPES if f"`{Path(name).stem}`" not in text] == []


@pytest.mark.parametrize("name", sorted(path.name for path in (FOLDER / "studies").glob("*.yaml")))
def test_plan(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = (
        build_parser()
        .parse_args(["study", "--config", str(FOLDER / "studies" / name), "--teacher", "T", "--corpus", "text.txt"])
        .study
    )
    study = Study(**{key: options[key] for key in Study.__dataclass_fields__})
    study.check()
    screening = name == "objectives.yaml"  # It chooses what a plan of more seeds compares, and claims nothing itself.
    assert len(study.tasks) >= 2 and study.seeds >= (2 if screening else 3), "differences of one task or seed are noise"
    if name == "ablation.yaml":
        assert {key.split(".")[0] for key in get_differing_settings(study.students)} == {"losses", "student"}, (
            "one part of the recipe at a time"
        )
        assert {"triple loss", "without distillation", *PAPER_ABLATION} == set(study.students), (
            "the paper's table 4, and what the teacher is worth"
        )


def test_every_small_recipe_runs_on_any_usual_number_of_gpus():
    for file in ("few_tokens.yaml", "small_real.yaml", "baseline_no_teacher.yaml", "distilbert_base.yaml"):
        training = Training(**yaml.safe_load((FOLDER / file).read_text())["training"])
        for ranks in (1, 2, 4, 8, 16):
            micro = training.resolve_micro_batch(ranks)
            assert training.global_batch_size % (micro * ranks) == 0 and 1 <= micro <= training.micro_batch_size


def test_the_micro_batch_is_what_divides_a_ranks_share():
    training = Training(global_batch_size=32, micro_batch_size=12)
    assert [training.resolve_micro_batch(ranks) for ranks in (1, 2, 4, 8, 32)] == [8, 8, 8, 4, 1]
    # where the shares differ, as few micro-batches as the limit allows, and all about as large
    assert [training.resolve_micro_batch(ranks) for ranks in (3, 5, 7, 31, 64)] == [11, 7, 5, 2, 1]
    assert training.micro_batches(3) == [11, 6, 4, 3, 2, 1]


@pytest.mark.parametrize("command", ["prepare", "pretrain", "distill", "estimate", "evaluate"])
def test_one_recipe_serves_all_commands(command, tmp_path):
    recipe = yaml.safe_load((FOLDER / "distilbert_base.yaml").read_text()) | {"heldout": ["held.txt"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    check_command([command, "--config", str(tmp_path / "recipe.yaml"), "--output", "out"])


def test_the_setting_that_is_named_like_a_word_of_python(tmp_path):
    (tmp_path / "recipe.yaml").write_text("student: {from: runs/a}\n")
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe.student.from_ == recipe.as_dict()["student"]["from"] == "runs/a"
    assert "student.from" in recipe.setting_names() and "student.from" not in recipe.identity()
    for words in (["--student.from", "runs/a"], ["--config", str(tmp_path / "recipe.yaml")]):
        assert check_command(["distill", *words, "--output", "out"]) == recipe
    for words in (["--student.from_", "runs/a"], ["--config", "student: {from_: runs/a}"]):
        with pytest.raises(UserError, match=r"student\.from_: no such key; did you mean student\.from\?"):
            check_command(["distill", *words, "--output", "out"])


@pytest.mark.parametrize(
    ("key", "value", "remedy"), [("num_layers", 2, "null"), ("init_layers", [0, 1], "every_other")]
)
def test_a_student_that_starts_from_a_model_has_its_shape(key, value, remedy):
    recipe = Recipe(student=Student(from_="runs/a", **{key: value}))
    with pytest.raises(UserError, match=rf"student\.from = runs/a: .*student\.{key} = .*set it to {remedy}"):
        recipe.check()
