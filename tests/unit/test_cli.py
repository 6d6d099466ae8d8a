import os

import pytest
import yaml

from ds_distill import cli
from ds_distill.parser import build_parser, recipe_of
from ds_distill.recipe import Training


def test_run_without_a_recipe_takes_the_embedded_default(monkeypatch):
    seen = {}
    monkeypatch.setattr(cli, "execute", lambda command, options: seen.update(command=command, options=options) or {})
    monkeypatch.setattr(cli, "write_summary", lambda summary, folder: None)
    assert cli.main(["run", "--training.seed", "3", "--debug"]) == 0
    assert seen["command"] == "run"
    demo = yaml.safe_load(cli.DEMO.read_text())
    assert seen["options"].vocabulary == demo["vocabulary"] and seen["options"].data.sequence_length == demo["data"]["sequence_length"]
    assert seen["options"].training.seed == 3


def test_device_cpu_hides_the_gpus_before_torch_is_loaded(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    seen = {}
    monkeypatch.setattr(cli, "quieten", lambda debug: seen.update(os.environ))
    monkeypatch.setattr(cli, "execute", lambda command, options: {})
    assert cli.main(["run", "--training.device", "cpu", "--output", ""]) == 2, "an output is asked for first"
    assert not seen
    monkeypatch.setattr(cli, "write_summary", lambda summary, folder: None)
    assert cli.main(["run", "--training.device", "cpu"]) == 0
    assert seen["CUDA_VISIBLE_DEVICES"] == "" and seen["DS_ACCELERATOR"] == "cpu"


def test_a_section_with_nothing_under_it_has_the_defaults(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("training:\nlosses:\n  kl: 3\n")
    seen = {}
    monkeypatch.setattr(cli, "execute", lambda command, options: seen.update(recipe=recipe_of(options)) or {})
    monkeypatch.setattr(cli, "write_summary", lambda summary, folder: None)
    assert cli.main(["distill", "--config", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path)]) == 0
    assert seen["recipe"].losses.kl == 3 and seen["recipe"].training == Training()


@pytest.mark.parametrize("given, words", [
    (["--training.seed", "-1"], "training.seed = -1: must be between 0"),
    (["--data.weights", "[.nan, 1]"], "data.weights[0] = nan: must be between 0"),
    (["--training.deepspeed", "commas.json"], "training.deepspeed = commas.json: not JSON"),
    (["--training.deepspeed", "list.json"], "training.deepspeed = list.json: must be an object"),
    (["--training.deepspeed", "null.json"], "training.deepspeed = null.json: must be an object, and so zero_optimization"),
    (["--training.deepspeed", "auto.json"], 'training.deepspeed = auto.json: zero_optimization.stage = "auto": must be 0, 1, 2 or 3'),
    (["--training.betas", "[0.9, 1.0]"], "training.betas[1] = 1.0: must be between 0 and 0.99999"),
    (["--training.eps", "0"], "training.eps = 0.0: must be between 1e-15"),
    (["--data.mask_smoothing", ".nan"], "data.mask_smoothing = nan: must be between 0 and 5"),
    (["--config", "latin.yaml"], "--config: not UTF-8 text"),
])  # fmt: skip
def test_what_would_end_in_a_traceback_is_one_sentence(tmp_path, monkeypatch, capsys, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "commas.json").write_text('{"zero_optimization": {"stage": 1,}}')
    for name, said in (("list", "[1]"), ("null", '{"zero_optimization": null}'), ("auto", '{"zero_optimization": {"stage": "auto"}}')):
        (tmp_path / f"{name}.json").write_text(said)
    (tmp_path / "latin.yaml").write_bytes("# größer\ntraining: {}\n".encode("latin-1"))
    assert cli.main(["distill", "--teacher", "T", "--corpus", "x", "--output", "out", *given]) == 2
    said = capsys.readouterr().err.splitlines()
    assert f"ds-distill: {words}" in said[-1]


def test_prepare_takes_a_recipe_with_a_teacher():
    options = build_parser().parse_args(["prepare", "--config", str(cli.DEMO.with_name("distilbert_base.yaml")), "--output", "tokens"]).prepare
    assert options.teacher and options.corpus and not options.tokenizer and options.data.sequence_length == 512


def test_ctrl_c_is_one_sentence(monkeypatch, capsys, tmp_path):
    def interrupted(command, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "execute", interrupted)
    assert cli.main(["finetune", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("ds-distill: interrupted; what is done is kept, and the same command goes on from there\n")
