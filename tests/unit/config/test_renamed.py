"""Test that earlier keys are refused by the name of today, and that earlier runs are still known as themselves."""

import json

import pytest

from ds_distill.cli.app import main
from ds_distill.cli.parser import build_parser
from ds_distill.config.renamed import RENAMED, current_name, read_identity
from ds_distill.data.token_files import read_manifest
from ds_distill.finetune.config import FinetuneConfig, expand_grid
from ds_distill.recipe import Recipe
from ds_distill.run_folder import check_run_identity
from ds_distill.study.plan import Study
from ds_distill.utils.errors import UserError


def get_command(key: str) -> str:
    return "study" if key in ("teacher_too", "second", "tuning") else "finetune" if "tuning" in key else "distill"


@pytest.mark.parametrize("key", RENAMED)
@pytest.mark.parametrize("in_a_file", [False, True], ids=["option", "file"])
def test_an_earlier_key_is_refused_by_the_name_of_today(key, in_a_file, tmp_path):
    (tmp_path / "r.yaml").write_text(f"{key.replace('.', ': {')}: 1{'}' if '.' in key else ''}\n")
    words = ["--config", str(tmp_path / "r.yaml")] if in_a_file else [f"--{key}", "1"]
    with pytest.raises(UserError) as error:
        build_parser().parse_args([get_command(key), *words])
    dashes = "" if in_a_file else "--"
    assert f"{key}: no such key; write {dashes}{current_name(key)} " in str(error.value)


def test_the_name_of_today_is_a_key():
    options = {
        command: build_parser().parse_args([command])[command].as_flat() for command in ("distill", "finetune", "study")
    }
    for key in RENAMED:
        assert hasattr(options[get_command(key)], current_name(key)), key
        assert not hasattr(options[get_command(key)], key), key
    assert current_name("training.seed") is None and current_name("tuning.epochs") == "finetune.epochs"


def test_a_run_of_an_earlier_version_is_the_same_run(tmp_path):
    now = Recipe().identity() | {"data.mode": "lines"}
    back = {today: key for key, today in RENAMED.items()}
    before = {back.get(key, key): value for key, value in now.items()} | {"data.mode": "grouped"}
    assert read_identity(before) == now and read_identity(now) == now
    (tmp_path / "run.json").write_text(json.dumps(before))
    check_run_identity(tmp_path, now, "auto")
    with pytest.raises(UserError, match="training.global_batch_size was 64, is 8"):
        check_run_identity(tmp_path, now | {"training.global_batch_size": 8}, "auto")


def test_prepared_data_of_an_earlier_version_are_read(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"mode": "grouped"}))
    assert read_manifest(tmp_path) == {"mode": "lines"}


def test_a_study_of_an_earlier_version_is_not_read_in_part():
    with pytest.raises(
        UserError, match="study.json was written by an earlier version: second is now task_distillation"
    ):
        Study.from_dict({"base": "b", "second": ["a"]})


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["finetune", "--finetune.hard", "8"], "write --finetune.hard_label_weight"),
        (["finetune", "--finetune", "{hard: 8}"], "write finetune.hard_label_weight"),
        (["study", "--tuning.batch", "8"], "write --finetune.batch_size"),
        (["distill", "--data.mode", "grouped"], "data.mode: grouped is called lines now"),
    ],
)
def test_half_renamed_words_are_answered_too(words, answer):
    with pytest.raises(UserError) as error:
        build_parser().parse_args(words)
    assert answer in str(error.value)


def test_the_old_command_names_the_new_one(capsys):
    assert main(["plan", "--teacher", "t"]) == 2
    assert "plan: no such command; it is called estimate now" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["batch", "tuning.batch", "finetune.batch", "hard", "warmup"])
def test_a_grid_of_an_old_name(name):
    with pytest.raises(
        UserError, match=rf"--grid {name}=1: {name} is called (batch_size|hard_label_weight|warmup_ratio) now"
    ):
        expand_grid(FinetuneConfig(), [f"{name}=1"])


def test_a_student_with_an_old_key():
    plan = {
        "base": "ds_configs/small_real.yaml",
        "teacher": "T",
        "corpus": ["c"],
        "heldout": [],
        "data": None,
        "tasks": [],
    }
    with pytest.raises(UserError, match="student.layers: is called student.init_layers now"):
        Study(students={"a": {"student.layers": "random"}}, **plan).check()
    with pytest.raises(UserError, match="hard: is called hard_label_weight now"):
        Study(students={"a": {}}, finetune={"hard": 1}, **(plan | {"tasks": ["rte"]})).check()


@pytest.mark.parametrize(
    ("section", "key", "answer"),
    [
        ("student", "hidden", "student.hidden: no such key; write student.hidden_size"),
        ("training", "global_batch", "training.global_batch: no such key; write training.global_batch_size"),
        ("training", "learnin_rate", "training.learnin_rate: no such key; did you mean training.learning_rate?"),
    ],
)
def test_an_attribute_that_is_no_setting_is_refused(section, key, answer):
    recipe = Recipe()
    setattr(getattr(recipe, section), key, 16)
    with pytest.raises(UserError) as error:
        recipe.check()
    assert answer in str(error.value)
