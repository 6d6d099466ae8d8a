import os

import yaml

from ds_distill import cli


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
