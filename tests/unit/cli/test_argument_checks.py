"""Mistakes in a command's arguments are reported before torch is imported and before anything is written."""

import json
import os
import subprocess
import sys

import pytest

from ds_distill.cli import arguments, main
from ds_distill.cli.commands import COMMANDS
from ds_distill.utils.errors import UserError
from tests.start import ROOT

# Every path option of every command gets a path that leads nowhere; the other options get what they need.
PROBE = """
import contextlib, io, json, sys
from pathlib import Path
from ds_distill.cli import main
from ds_distill.cli.parser import build_parser

world = Path(sys.argv[1])
NOWHERE = str(world / "nowhere" / "x")
M, TEXT, D, DD, OUT = (str(world / name) for name in ("model", "text.txt", "rte", "", "out"))
NEEDED = {
    "run": {"--teacher": M, "--corpus": TEXT}, "prepare": {"--tokenizer": M, "--corpus": TEXT}, \
"distill": {"--teacher": M, "--corpus": TEXT},
    "pretrain": {"--tokenizer": M, "--corpus": TEXT}, "estimate": {"--teacher": M}, \
"evaluate": {"--model": M, "--corpus": TEXT},
    "export": {"--model": M, "--format": "onnx"}, "finetune": {"--task": "rte", "--model": M, "--data": D},
    "multitask": {"--tasks": "[rte]", "--model": M, "--data": DD, "--corpus": TEXT},
    "study": {"--teacher": M, "--corpus": TEXT, "--data": DD, "--tasks": "[rte]"}, "report": {"": DD}, "env": {},
    "demo": {"--corpus": TEXT}, "make-qnli": {}, "trim": {"--model": M, "--corpus": TEXT},
    "prune": {"--model": M, "--corpus": TEXT, "--target": "2x"},
    "augment": {"--task": "squad", "--model": M, "--data": D, "--corpus": TEXT, "--cloze": "5"},
}
INSTEAD = {"--tokens": "--corpus", "--run": "--model", "--teacher": "--tokenizer"}  \
# of prepare, whose tokenizer is the teacher's
found = []
for command, parser in build_parser()._subcommands_action._name_parser_map.items():
    for action in parser._actions:
        if "UserPath" not in repr(getattr(action, "_typehint", "")) \
and "path" not in str(getattr(action, "_typehint", "")):
            continue
        if "not read by this command" in (action.help or ""):
            continue
        option = action.option_strings[0] if action.option_strings else ""
        if option == "--student.from" and command in ("prepare", "pretrain", "prune", "evaluate"):
            continue  # they make no student
        given = {"--output": OUT} | NEEDED[command]
        if command in ("prepare", "export", "run", "distill", "pretrain", "evaluate", "estimate") and option in INSTEAD:
            given.pop(INSTEAD[option], None)
        given[option] = NOWHERE if option != "--output" else TEXT + "/under a file"
        words = [word for name, value in given.items() for word in ((name, value) if name else (value,))]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([command, *words])
        found.append({"command": command, "option": option, "code": code, "out": out.getvalue(), "err": err.getvalue(),
                      "torch": "torch" in sys.modules})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The files that a command needs, as far as it checks them without torch."""
    world = tmp_path_factory.mktemp("arguments")
    (world / "text.txt").write_text("some text")
    (world / "model").mkdir()
    (world / "model" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (world / "model" / "model.safetensors").write_bytes(b"weights")
    (world / "rte").mkdir()
    for split in ("train", "validation"):
        (world / "rte" / f"{split}.jsonl").write_text(json.dumps({"sentence1": "a", "sentence2": "b", "label": 0}))
    return world


@pytest.mark.promise("Each mistake of a user is one sentence, without a traceback")
def test_a_path_that_leads_nowhere_is_told_before_torch_is_imported(world, record_property):
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(world)],
        env=environment | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        cwd=world,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row["command"] for row in rows} == set(COMMANDS)
    assert len(rows) >= 45
    for row in rows:
        where = f"{row['command']} {row['option']}: {row['err'][-800:]}"
        lines = [line for line in row["err"].splitlines() if line.startswith("ds-distill: ")]
        named = ("nowhere" if row["option"] != "--output" else "under a file") in (lines or [""])[-1]
        assert row["code"] == 2 and len(lines) == 1 and named and not row["out"] and "Traceback" not in row["err"], (
            where
        )
        assert not row["torch"], where
    assert not (world / "out").exists() and not (world / "runs").exists()
    record_property("options", len(rows))


@pytest.mark.parametrize("url", ["s3://bucket/tokens", "memory://tokens"])
def test_an_output_that_is_a_url_makes_no_folder_of_that_name(url):
    with pytest.raises(UserError, match=f"--output {url}: a URL; give a folder of this machine"):
        arguments.check_writable(url)
    arguments.check_writable("s3:tokens")


# what a command needs besides --output, and what does more than write its summary there
NO_RUNS = {
    "env": [],
    "estimate": ["--teacher", "bert-base-uncased"],
    "evaluate": ["--model", "model", "--corpus", "text.txt"],
    "export": ["--model", "model", "--format", "onnx"],
    "make-qnli": [],
    "prepare": ["--tokenizer", "model", "--corpus", "text.txt"],
    "report": ["other"],
}
BINDING = {"augment", "demo", "distill", "finetune", "multitask", "pretrain", "prune", "run", "study", "trim"}


def test_no_command_replaces_the_summary_of_a_run(world, monkeypatch, capsys):
    """A run's summary names its model; commands that bind their folder find the run in it by themselves."""
    assert NO_RUNS.keys() | BINDING == COMMANDS.keys()
    monkeypatch.chdir(world)
    for marker in ("run.json", "study.json"):
        folder = world / f"of {marker}"
        folder.mkdir()
        (folder / marker).write_text("{}")
        (folder / "summary.json").write_text('{"export": "export"}')
        for command, words in NO_RUNS.items():
            assert main([command, *words, "--output", str(folder)]) == 2
            told = capsys.readouterr().err
            assert "the folder of a run or study, whose summary.json would be replaced" in told, (command, told)
        assert (folder / "summary.json").read_text() == '{"export": "export"}'
