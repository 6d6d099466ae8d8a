import yaml

from ds_distill import cli


def test_run_without_a_recipe_takes_the_embedded_default(monkeypatch):
    seen = {}
    monkeypatch.setattr(cli, "execute", lambda command, options: seen.update(command=command, options=options) or {})
    assert cli.main(["run", "--training.seed", "3", "--debug"]) == 0
    assert seen["command"] == "run"
    demo = yaml.safe_load(cli.DEMO.read_text())
    assert seen["options"].vocabulary == demo["vocabulary"] and seen["options"].data.sequence_length == demo["data"]["sequence_length"]
    assert seen["options"].training.seed == 3
