from ds_distill import cli


def test_run_without_a_recipe_takes_the_embedded_default(monkeypatch):
    seen = {}
    monkeypatch.setattr(cli, "execute", lambda command, options: seen.update(command=command, options=options) or {})
    assert cli.main(["run", "--training.seed", "3", "--debug"]) == 0
    assert seen["command"] == "run"
    assert seen["options"].vocabulary == 4096 and seen["options"].data.sequence_length == 64
    assert seen["options"].training.seed == 3
