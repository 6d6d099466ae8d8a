"""Every command in the documents is one that the program takes."""

import importlib
import re
import shlex
import sys

import pytest

from ds_distill.cli import manual
from ds_distill.cli.commands import COMMANDS
from ds_distill.cli.parser import check_command
from ds_distill.distributed.nodes import pop_options
from tests.start import ROOT

PAGES = sorted(page for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")))
RECORDS = ROOT / "docs" / "results" / "benchmarks"
FLAGS = (
    "--assemble",
    "--encoder",
    "--untrained",
    "--fresh",
    "--from-scratch",
    "--debug",
    "--json",
    "--help",
    "--version",
)


def fragments(text: str) -> list[str]:
    """Return the lines of fenced blocks, continued ones joined, and what stands between backticks elsewhere."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in (*lines, *inline)]


def find_words(command: str) -> list[str]:
    """Return the words of a command, without its remark, placeholders for more, and files that are not here."""
    command = re.split(r"\s{2,}(?=[^-\s])|\s#\s", command)[0]
    command = command.replace("$DATA", "--teacher T --corpus C").replace("...", "…")
    command = re.sub(r"(--\S+\s)(…|N)(?=\s|$)", r"\g<1>1", command).replace("…", "")
    words = shlex.split(command)
    if words[-1].startswith("--") and words[-1] not in FLAGS:
        words.append("1")  # the text speaks of the option
    for place in range(len(words) - 2, -1, -1):
        if words[place] == "--config" and not (ROOT / words[place + 1]).is_file():
            del words[place : place + 2]
    return words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_is_taken(page):
    for fragment in fragments(page.read_text(encoding="utf-8")):
        if fragment.startswith("ds-distill "):
            words = find_words(fragment)[1:]
        elif re.match(r"(deepspeed .*|(\S+=\S+ )*\./)launch\.sh( |$)", fragment):
            words = find_words(fragment)
            words = words[next(place for place, word in enumerate(words) if word.endswith("launch.sh")) + 1 :]
            words = ["run", *pop_options(words)[1]]
        else:
            continue
        if words[0] not in COMMANDS:
            assert words[0] in ("COMMAND", "--version", "--help"), fragment
        elif len(words) > 1 and not {"--help", "--version", "--setup-only"} & set(words):
            check_command(words)


def python_commands() -> list[str]:
    # The log and the reports of benchmarks record what was typed at the time.
    pages = (page for page in PAGES if page.name != "log.md" and RECORDS not in page.parents)
    candidates = (fragment for page in pages for fragment in fragments(page.read_text(encoding="utf-8")))
    return sorted(
        {command for command in candidates if command.startswith(("python -m benchmarks.", "python -m tests."))}
    )


@pytest.mark.parametrize("command", python_commands())
def test_every_benchmark_of_the_documents_is_there_and_has_its_options(command, monkeypatch, capsys):
    _, _, module, *words = find_words(command)
    if module.startswith("tests."):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file() or (
            ROOT / module.replace(".", "/") / "__main__.py"
        ).is_file()
        return
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    main = importlib.import_module("benchmarks.inference.__main__" if module == "benchmarks.inference" else module).main
    with pytest.raises(SystemExit):
        main()
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, command


def test_the_pages_of_settings_and_commands_are_current():
    for file, text in manual.pages().items():
        assert file.read_text(encoding="utf-8") == text, f"{file} is not what the code says: run {manual.COMMAND}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:|#", target):
            continue
        file = (page.parent / target.partition("#")[0]).resolve()
        assert file.is_file(), target
        if ROOT / "docs" in page.parents:  # the site has nothing else
            assert (ROOT / "docs").resolve() in file.parents, target
