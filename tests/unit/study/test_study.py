"""Test a study's plan: its steps, how it may grow, and which mistakes are reported before its first step."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from ds_distill.cli.arguments import build_recipe
from ds_distill.cli.parser import build_parser, check_command
from ds_distill.cli.study import make_study
from ds_distill.recipe import Match, Stage
from ds_distill.study.figures import format_score
from ds_distill.study.jobs import make_jobs
from ds_distill.study.plan import Study
from ds_distill.study.rows import collect_rows
from ds_distill.study.run import _expand_home, _get_changed_keys, _load_base, run_study
from ds_distill.study.score_tables import task_tables
from ds_distill.study.variants import Variant
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder


def test_a_plans_recipe_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Study("ds_configs/few_tokens.yaml", "T", ["text.txt"], [], None, {"a": {}}, ["rte"]).check()
    with pytest.raises(
        UserError, match="base: ds_configs/few.yaml: no such recipe, neither in the current folder nor in /"
    ):
        Study("ds_configs/few.yaml", "T", ["text.txt"], [], None, {"a": {}}, ["rte"]).check()


def test_a_base_without_a_suffix_is_the_users_own(tmp_path, monkeypatch):
    """Its name is that of a shipped recipe; it includes another, whose content counts."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner.yaml").write_text("losses: {kl: 3}\n")
    (tmp_path / "few_tokens").write_text("config: inner.yaml\n")
    study = Study("./few_tokens", "T", ["text.txt"], [], None, {"a": {}}, ["rte"])
    again = Study.from_dict(asdict(study))
    assert study.base == again.base == "./few_tokens"
    assert [job.argv[:3] for job in make_jobs(again, tmp_path)][1] == ("distill", "--config", "./few_tokens")
    before = _load_base(study.base)
    (tmp_path / "inner.yaml").write_text("losses: {kl: 4}\n")
    assert _load_base(study.base) != before


def test_a_metric_that_a_task_has_been_given_since_is_not_measured():
    result = {"metric": "accuracy", "metrics": {"accuracy": 0.5}, "seeds": [{"accuracy": 0.5}]}
    assert format_score(result, "f1_macro") == "–"


def test_students_share_tokens_unless_they_read_otherwise(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("teacher: A\nheldout: [b.txt]\ndata: {sequence_length: 96, mlm_probability: 0.2}\n")
    students = {"a": {}, "longer": {"data.sequence_length": 64}, "masks": {"data.mlm_probability": 0.3}}
    study = Study(str(base), "TEACHER", ["text.txt"], ["held.txt"], None, students, ["rte"], include_teacher=False)
    prepare, *distil = make_jobs(study, tmp_path)[:4]
    assert prepare.argv == (
        "prepare",
        "--tokenizer",
        "TEACHER",
        "--corpus",
        "text.txt",
        "--data.sequence_length",
        "96",
    )
    assert prepare.output == tmp_path / "tokens"
    assert [("--tokens" in job.argv, "--corpus" in job.argv) for job in distil] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    assert [job.depends_on for job in distil] == [(tmp_path / "tokens",), (), (tmp_path / "tokens",)]
    assert all("held.txt" in job.argv for job in distil)
    for name in ("a", "masks"):
        (tmp_path / "students" / name).mkdir(parents=True)
        (tmp_path / "students" / name / "summary.json").touch()
    assert [job.argv[0] for job in make_jobs(study, tmp_path)][:3] == ["distill"] * 3, (
        "all that share the tokens have read them"
    )


def test_a_task_may_have_settings_and_seeds_of_its_own(tmp_path):
    tuning = {"learning_rate": 1e-4, "squad": {"learning_rate": 3e-4, "seeds": 1}}
    study = Study(
        "ds_configs/few_tokens.yaml",
        "T",
        ["text.txt"],
        [],
        None,
        {"a": {}},
        ["rte", "squad"],
        include_teacher=False,
        finetune=tuning,
    )
    rte, squad = make_jobs(study, tmp_path)[-2:]
    assert rte.argv[3:] == ("--seeds", "5", "--finetune.learning_rate", "0.0001")
    assert squad.argv[3:] == ("--seeds", "1", "--finetune.learning_rate", "0.0003")
    assert (rte.seeds, squad.seeds) == (5, 1)


def test_a_task_of_ones_own_has_the_name_of_its_file_and_settings_under_it(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    file = tmp_path / "mine.yaml"
    file.write_text("text: text\nlabel: label\ndev_share: 0.5\n")
    plan = (
        f"tasks: [rte, {file}]\nteacher: T\ncorpus: text.txt\ndata: {tmp_path}\nfinetune: {{mine: {{epochs: 1e1}}}}\n"
    )
    (tmp_path / "plan.yaml").write_text(plan)
    options = build_parser().parse_args(["study", "--config", str(tmp_path / "plan.yaml")]).study
    study = make_study(options)
    assert study.labels == ["rte", "mine"] and study.get_finetune_settings(str(file)) == (5, {"epochs": 10.0})
    jobs = make_jobs(study, tmp_path / "out")
    assert jobs[-1].argv == ("finetune", "--task", str(file), "--seeds", "5", "--finetune.epochs", "10.0")
    assert jobs[-1].output == tmp_path / "out" / "tasks" / "mine" / "distilled" and "--data" in jobs[-3].argv
    result = {"metric": "f1_macro", "metrics": {"f1_macro": 0.5}, "seeds": [{"seed": 0, "f1_macro": 0.5}]}
    jobs[-1].output.mkdir(parents=True)
    (jobs[-1].output / "summary.json").write_text(json.dumps(result))
    [section] = task_tables(collect_rows(study, tmp_path / "out"), ["mine"])
    assert section.columns["mine"] == "mine (f1 macro)" and section.rows[-1]["mine"] == "50.0"
    study.tasks = [str(file), str(file)]
    with pytest.raises(UserError, match="tasks: mine: given twice; remove one"):
        study.check()


@pytest.mark.parametrize(
    "before, now, changed",
    [
        ({}, {"tasks": ["rte", "squad"], "finetune": {"epochs": 3, "squad": {"seeds": 1}}}, []),
        ({}, {"students": {"a": {}, "b": {"losses.kl": 0}}, "task_distillation": ["a"]}, []),
        ({}, {"finetune": {"epochs": 3, "rte": {"seeds": 1}}}, ["finetune"]),
        ({}, {"finetune": {"epochs": 4, "rte": {"epochs": 3}}}, []),
        (
            {"tasks": ["rte", "squad"]},
            {"finetune": {"epochs": 3, "squad": {"seeds": 1}}, "tasks": ["rte"]},
            ["tasks", "finetune"],
        ),
        ({}, {"base": "/elsewhere/few_tokens.yaml"}, []),
        ({}, {"seeds": 5, "students": {"a": {"losses.kl": 0}}}, ["students"]),
        ({}, {"seeds": 2}, ["seeds"]),
        ({"variants": {"v": asdict(Variant("a"))}}, {"variants": {}}, ["variants"]),
        ({}, {"variants": {"v": asdict(Variant("a"))}, "copies": 8}, []),
        (
            {"variants": {"v": asdict(Variant("a"))}},
            {"variants": {"v": asdict(Variant("a", finetune={"epochs": 3}))}},
            [],  # it says what the plan says
        ),
        (
            {"variants": {"v": asdict(Variant("a"))}},
            {"variants": {"v": asdict(Variant("a", finetune={"epochs": 4}))}},
            ["variants"],
        ),
        (
            {"variants": {"v": asdict(Variant("a"))}},
            {"tasks": ["rte", "squad"], "variants": {"v": asdict(Variant("a", finetune={"squad": {"epochs": 9}}))}},
            [],
        ),
        (
            {"variants": {"v": asdict(Variant("a", True, "all", finetune={"teacher_weights": [2, 1]}))}, "seeds": 2},
            {"variants": {"v": asdict(Variant("a", True, "all", finetune={"teacher_weights": [2, 1, 1]}))}, "seeds": 3},
            [],
        ),
        (
            {"variants": {"v": asdict(Variant("a", True, "all", finetune={"teacher_weights": [2, 1]}))}, "seeds": 2},
            {"variants": {"v": asdict(Variant("a", True, "all", finetune={"teacher_weights": [1, 1]}))}},
            ["variants"],
        ),
        ({"variants": {"v": asdict(Variant("a", True, augmented=True))}}, {"copies": 8}, ["copies"]),
        ({"finetune": {"rte": {"seeds": 1}}}, {"finetune": {"rte": {"seeds": 3}}}, []),
        ({}, {"task_files": {"mine": "text: a"}}, []),
        ({"task_files": {"mine": "text: a"}}, {"task_files": {"mine": "text: b"}}, ["task_files"]),
        ({"finetune": {"rte": {"seeds": 1}}}, {"finetune": {"rte": {"seeds": 3, "epochs": 2}}}, ["finetune"]),
    ],
)
def test_a_study_may_grow_but_what_it_held_stays(before, now, changed):
    plan = asdict(
        Study("ds_configs/few_tokens.yaml", "T", ["text.txt"], [], None, {"a": {}}, ["rte"], finetune={"epochs": 3})
    )
    assert _get_changed_keys(plan | before, plan | before | now) == changed


@pytest.mark.parametrize("config", sorted(map(str, Path("ds_configs").glob("*.yaml"))))
def test_every_recipe_can_be_a_studys_base(tmp_path, config):
    prepare = make_jobs(Study(config, "TEACHER", ["text.txt"], [], None, {"a": {}}, ["rte"]), tmp_path)[0]
    options = build_parser().parse_args([*prepare.argv, "--output", "x"])
    assert options.prepare.data.sequence_length == yaml.safe_load(Path(config).read_text())["data"]["sequence_length"]


def test_a_student_may_have_stages_of_its_own(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "students:\n  two:\n    losses.kl: 0\n    stages:\n"
        "      - {share: 0.5, losses: {mlm: 0, match: [{loss: mse, layers: [[0, 1]]}]}, learnable: [0]}\n"
        "      - {share: 0.5, learning_rate: 1e-4}\n"
    )
    students = build_parser().parse_args(["study", "--config", str(plan)]).study.students
    study = Study("ds_configs/small_real.yaml", "T", ["text.txt"], [], None, students, [])
    study.check()
    words = make_jobs(study, tmp_path)[1].argv
    stages = build_recipe(build_parser().parse_args([*words, "--output", "x"]).distill).stages
    assert stages == [
        Stage(0.5, {"mlm": 0.0, "match": [Match("mse", layers=[(0, 1)])]}, [0]),
        Stage(0.5, learning_rate=1e-4),
    ]


@pytest.mark.parametrize(
    "launch, changes, words",
    [
        ("deepspede launch.sh", {}, "--launch deepspede launch.sh: no such command"),
        ("deepspeed 'launch.sh", {}, "No closing quotation"),
        ("", {"corpus": "half.txt"}, "students: a: corpus: a student may differ only in dotted settings"),
        ("", {"teacher": ["A", "B"]}, "students: a: teacher: a student may differ only in .* its teacher, a folder or"),
    ],
)
def test_a_studys_mistakes_are_said(launch, changes, words):
    with pytest.raises(UserError, match=words):
        Study("ds_configs/small_real.yaml", "T", ["text.txt"], [], None, {"a": changes}, ["rte"], launch=launch).check()


@pytest.mark.parametrize(
    "what, words",
    [
        ({"finetune": {"epoch": 2}}, "finetune: epoch: no such setting; did you mean epochs?"),
        ({"finetune": {"rte": {"learning_rates": 1e-4}}}, "did you mean learning_rate?"),
        ({"finetune": {"learning_rate": "fast"}}, "finetune of rte: .*a value that must be a number is not one"),
        ({"finetune": {"warmup_ratio": 1}}, "finetune.warmup_ratio = 1: must be between 0 and 0.99"),
        ({"finetune": {"batch_size": 2.5}}, "finetune.batch_size = 2.5: must be a whole number"),
        ({"finetune": {"dropout": 1}}, "finetune.dropout = 1: must be between -1 and 0.99"),
        ({"finetune": {"rte": 3}}, "finetune: rte: 3: must map names of settings to values"),
        ({"seeds": 0}, "seeds of rte = 0: must be a whole number, 1 or more"),
        ({"finetune": {"rte": {"seeds": "two"}}}, "seeds of rte = 'two': must be a whole number, 1 or more"),
        ({"students": {"a": {"losses.kll": 0}}}, "students: a: losses.kll: no such setting; did you mean losses.kl?"),
        ({"data": "nowhere"}, "--data nowhere/rte: exactly one file train"),
        ({"tasks": ["rte", "sst2", "rte"]}, "tasks: rte: given twice"),
        ({"jobs": 0}, "--jobs 0: the number of jobs that run in parallel must be at least 1"),
    ],
)
def test_what_would_end_a_study_after_hours_is_said_at_its_start(what, words):
    plan = {"students": {"a": {}}, "tasks": ["rte"], "data": None} | what
    with pytest.raises(UserError, match=words):
        Study(base="ds_configs/small_real.yaml", teacher="T", corpus=["text.txt"], heldout=[], **plan).check()


def test_prepared_tokens_take_the_place_of_the_corpus(tmp_path):
    plan = {"base": "ds_configs/small_real.yaml", "teacher": "T", "heldout": [], "data": None, "tasks": ["squad"]}
    augmented = {"students": {"a": {}}, "variants": {"b": Variant("a", True, augmented=True)}}
    study = Study(**plan, corpus=[], tokens="prepared", **augmented)
    study.check()
    jobs = {job.what: job for job in make_jobs(study, tmp_path)}
    assert "prepare the text" not in jobs and jobs["distill a"].depends_on == ()
    words = jobs["distill a"].argv
    assert words[words.index("--tokens") + 1] == "prepared" and "--corpus" not in words
    other = plan | {"corpus": [], "tokens": "prepared", "students": {"a": {"data.drop_duplicates": True}}}
    with pytest.raises(UserError, match="students: a: data.drop_duplicates: --tokens prepared was prepared in one way"):
        Study(**other).check()
    Study(**plan | {"tasks": ["rte"]}, corpus=[], tokens="prepared", cloze=9, **augmented).check()  # not for rte
    for given, words in (
        ({"tokens": "prepared", "cloze": 9, **augmented}, "--corpus is missing; cloze: 9: the questions are made of"),
        ({"students": {"a": {}}}, "--corpus is missing; give it"),
    ):
        with pytest.raises(UserError, match=words):
            Study(**plan, corpus=[], **given).check()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"losses.kl_tokens": "maskd"}, "distill b: losses.kl_tokens: .*maskd"),
        ({"training.epochs": "many"}, "distill b: training.epochs: .*many"),
        ({"losses.temperature": 0}, "distill b: losses.temperature = 0"),
        ({"training.learning_rate": -1}, "distill b: training.learning_rate = -1"),
    ],
)
def test_a_value_that_a_student_cannot_have_is_said_before_another_is_distilled(tmp_path, changes, words):
    study = Study("ds_configs/small_real.yaml", "T", ["text.txt"], [], None, {"a": {}, "b": changes}, ["rte"])
    with pytest.raises(UserError, match=words):
        run_study(study, tmp_path / "out", check_command)
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_in_a_tasks_files_is_said_before_a_student_is_distilled(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "rte").mkdir(exist_ok=True)
        (tmp_path / "rte" / f"{split}.jsonl").write_text(
            json.dumps({"sentence1": "a", "sentence2": "b", "label": int(split == "train") + 1})
        )
    study = Study("ds_configs/small_real.yaml", "T", ["text.txt"], [], str(tmp_path), {"a": {}}, ["rte"])
    with pytest.raises(UserError, match="train.jsonl, line 1: label 2: not a label of rte"):
        run_study(study, tmp_path / "out", check_command)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_lies_at_a_path_may_not_change_while_jobs_are_left(tmp_path, monkeypatch):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "rte").mkdir()
    weights = save_encoder("bert", tmp_path / "teacher") / "model.safetensors"
    examples = [tmp_path / "rte" / f"{split}.jsonl" for split in ("train", "validation")]
    for file in examples:
        file.write_text("".join(json.dumps({"sentence1": "a", "sentence2": "b", "label": i}) + "\n" for i in (0, 1)))
    plan = ["ds_configs/small_real.yaml", str(tmp_path / "teacher"), [str(tmp_path / "text.txt")], [], str(tmp_path)]
    settings = {"student.init_layers": [0, 1], "data.sequence_length": 32}
    shutil.copytree(tmp_path / "teacher", tmp_path / "tuned")
    tuned = tmp_path / "tuned" / "model.safetensors"
    study = Study(*plan, {"a": settings, "b": settings | {"teacher": str(tmp_path / "tuned")}}, ["rte"])
    distill = {
        job.what: job.argv[job.argv.index("--teacher") + 1]
        for job in make_jobs(study, tmp_path)
        if job.argv[0] == "distill"
    }
    assert distill == {"distill a": str(tmp_path / "teacher"), "distill b": str(tmp_path / "tuned")}
    monkeypatch.setattr("ds_distill.study.run.run_jobs", lambda *_: None)  # as if it were stopped at once
    run_study(study, tmp_path / "out", check_command)
    run_study(study, tmp_path / "out", check_command)
    for file, words in (
        (examples[1], f"the study began with another task rte ({tmp_path}/rte): choose another --output"),
        (weights, f"the study began with another teacher ({tmp_path}/teacher): choose another --output"),
        (tuned, f"began with another teacher {tmp_path}/tuned ({tmp_path}/tuned): choose another --output"),
    ):
        before = file.read_bytes()
        file.write_bytes(before.replace(b'"a"', b'"c"') if file in examples else before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(UserError, match=re.escape(words)):
            run_study(study, tmp_path / "out", check_command)
        file.write_bytes(before)
    run_study(study, tmp_path / "out", check_command)


@pytest.mark.parametrize("name", ["no", "2024", "1e3", "null", "..", ".", "...", "a/b", "-x", "läuft", "2024-01-01"])
def test_a_student_of_any_name_has_a_folder_of_its_own(tmp_path, name):
    study = Study("ds_configs/few_tokens.yaml", "T", ["text.txt"], [], None, {name: {}, "other": {}}, ["rte"])
    study.check()
    outputs = [job.output for job in make_jobs(study, tmp_path)]
    assert len(set(outputs)) == len(outputs)
    for output in outputs:
        assert tmp_path in output.resolve().parents, output
    students = [job.output.name for job in make_jobs(study, tmp_path) if job.argv[0] == "distill"]
    assert len(students) == 2 and not {"", ".", ".."} & set(students)


def test_a_plan_in_words_of_yaml_is_the_same_as_in_others(tmp_path):
    plan = """
base: ds_configs/few_tokens.yaml
teacher: 2024
corpus: text.txt
students:
  no: {training.compile: off, training.max_tokens: 1M, losses.kl: 0, student.init_layers: [0, 2], data.column: 1e3}
tasks: rte
task_distillation: no
seeds: 2.0
include_teacher: yes
finetune: {learning_rate: 1e-4, batch_size: 1e1, rte: {seeds: 3, precision: bf16}}
"""
    (tmp_path / "plan.yaml").write_text(plan)
    options = build_parser().parse_args(["study", "--config", str(tmp_path / "plan.yaml")]).study
    study = make_study(options)
    study.check()
    changes = {
        "training.compile": "off",
        "training.max_tokens": 10**6,
        "losses.kl": 0,
        "student.init_layers": [0, 2],
        "data.column": "1e3",
    }
    tuning = {"learning_rate": 1e-4, "batch_size": 10, "rte": {"seeds": 3, "precision": "bf16"}}
    same = Study(
        "ds_configs/few_tokens.yaml", "2024", ["text.txt"], [], None, {"no": changes}, ["rte"], 2, True, ["no"], tuning
    )
    assert study == same
    for job in make_jobs(study, tmp_path):
        check_command([*job.argv, "--output", "x"])
        if job.argv[0] == "distill":
            training = build_parser().parse_args([*job.argv, "--output", "x"]).distill
            assert (training.training.compile, training.training.max_tokens, training.data.column) == (
                "off",
                10**6,
                "1e3",
            )


@pytest.mark.parametrize(
    "text, message",
    [
        ("- a", "contains a list; it must contain keys"),
        ("", "contains nothing"),
        ("data: {seed: 1, seed: 2}", "the key seed is given twice"),
    ]
    + [
        ("data: 3", "prepare the text: no|data: 3: expected a mapping"),
        ("größe: 1".encode("latin-1"), "base: .*: not UTF-8 text"),
    ],
)
def test_a_base_that_is_no_recipe_is_said(tmp_path, text, message):
    base = tmp_path / "base.yaml"
    base.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        run_study(Study(str(base), "T", ["text.txt"], [], None, {"a": {}}, ["rte"]), tmp_path / "out", check_command)
    assert not (tmp_path / "out").exists()


def test_a_study_goes_on_where_its_paths_were_kept_as_written(tmp_path, monkeypatch):
    """Earlier studies kept ~ in study.json, and a recipe may hold values that JSON cannot represent."""
    monkeypatch.setenv("HOME", str(tmp_path))
    base = tmp_path / "base.yaml"
    base.write_text(
        "teacher: 2024-01-01\n"
        "training: {seed: 0x10, compile: off, learning_rate: 1e-4, gradient_checkpointing: no}\n"
        "heldout: [=, 1:99]\n"
    )
    kept = _load_base(str(base))
    json.dumps(kept, default=str)
    plan = asdict(Study(str(base), f"{tmp_path}/t", [f"{tmp_path}/a", "hf:b"], [], None, {"a": {}}, ["rte"])) | {
        "recipe": kept
    }
    assert _get_changed_keys(_expand_home(plan | {"teacher": "~/t", "corpus": ["~/a", "hf:b"]}), plan) == []
    assert _get_changed_keys(_expand_home(plan | {"teacher": "~/u"}), plan) == ["teacher"]


def test_a_starter_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "a home"))
    starter = tmp_path / "a home" / "launch.sh"
    starter.parent.mkdir()
    starter.write_text("#!/bin/sh\n")
    starter.chmod(0o755)
    study = Study(
        "ds_configs/few_tokens.yaml", "T", ["text.txt"], [], None, {"a": {}}, ["rte"], launch="~/launch.sh --x ~/y"
    )
    study.check()
    [distil] = [job for job in make_jobs(study, tmp_path) if job.argv[0] == "distill"]
    assert distil.started_as()[:3] == [str(starter), "--x", f"{tmp_path}/a home/y"]


@pytest.mark.parametrize("written", ["[{loss: mse, layers: [[0, 1]]}]", "{loss: mse, layers: [[0, 1]]}"])
def test_a_student_with_loss_terms(tmp_path, written):
    """Its command line reads them as the plan has them, and study.json keeps them."""
    (tmp_path / "plan.yaml").write_text(f"students: {{a: {{losses.match: {written}}}}}\n")
    options = build_parser().parse_args(["study", "--config", str(tmp_path / "plan.yaml")]).study
    study = Study("ds_configs/few_tokens.yaml", "T", ["text.txt"], [], None, options.students, [])
    [distillation] = [job for job in make_jobs(study, tmp_path) if job.argv[0] == "distill"]
    recipe = check_command([*distillation.argv, "--output", "x"])
    assert recipe.losses.match == [Match("mse", layers=[(0, 1)])]
    json.dumps(study.students)
