"""What --help shows: examples that run, then options in plain words, in 80 columns."""

import shlex
from pathlib import Path

import pytest

from ds_distill.cli.commands import COMMANDS
from ds_distill.cli.parser import build_parser


def help_of(command: str) -> str:
    return build_parser()._subcommands_action._name_parser_map[command].format_help()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_examples_then_common_options_then_the_rest(command):
    lines = help_of(command).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"usage: ds-distill {command} [options]"
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles[:2] == ["examples:", "common options:"] and titles[-1] == "every command:"
    common = lines[lines.index("common options:") + 1]
    first = COMMANDS[command].COMMON_OPTIONS[0]
    assert common.split()[0].rstrip(",") in (f"--{first}", first.upper())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_shown_once_in_plain_words(command):
    parser, text = build_parser()._subcommands_action._name_parser_map[command], help_of(command)
    for action in parser._actions:
        names = [name for name in action.option_strings if not name.endswith(("+", ".help"))]
        section = action.dest in ("data", "student", "losses", "training", "finetune") and action.metavar == "CONFIG"
        if names and not section:
            shown = [line for line in text.splitlines() if line.strip().split(" ")[0].rstrip(",") == names[0]]
            indented = [line for line in shown if line.startswith("  -")]
            assert len(indented) == 1, names
    for jargon in ("Optional", "NoneType", "dict[", "list[", "Literal", "null", "(type:", "Annotated", "`"):
        assert jargon not in text, jargon


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_are_commands_that_the_program_takes(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = COMMANDS[command].EXAMPLES.strip().replace("\\\n", " ").splitlines()
    assert len(examples) == 3
    for example in examples:
        program, *words = shlex.split(example)
        for folder in (word for word in words if word.startswith(("runs/", "models/"))):
            Path(folder).mkdir(parents=True, exist_ok=True)  # what the reader has
        assert (program, words[0]) == ("ds-distill", command)
        if "study.yaml" in words:  # the reader's own plan
            del words[words.index("--config") : words.index("study.yaml") + 1]
        options = build_parser().parse_args(words)[command]
        if command != "run" or options.teacher:  # the demo's recipe comes from the program
            COMMANDS[command].check(options)


def test_the_program_lists_its_commands_in_80_columns():
    text = build_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"\n  {name} " in text for name in COMMANDS)
