"""Write the pages that follow from the code: all settings, all commands, and the table of encoder families.

    python -m ds_distill.cli.manual

A test compares the pages with what this module would write.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, cast, get_type_hints

import docstring_parser

from ds_distill.cli.argument_parser import Value
from ds_distill.cli.arguments import SECTIONS
from ds_distill.cli.commands import COMMANDS
from ds_distill.cli.option_words import COMMON, NONE, shown, type_in_words
from ds_distill.cli.parser import build_parser
from ds_distill.config.recipe_file import setting_name
from ds_distill.config.values import Name
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.models.families import FAMILIES
from ds_distill.models.families.family import Family
from ds_distill.models.families.students import list_students
from ds_distill.multitask.settings import READ
from ds_distill.recipe import Match, Stage
from ds_distill.study.plan import Study
from ds_distill.study.variants import Variant

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"  # what stands between them is generated
COMMAND = "python -m ds_distill.cli.manual"
NOTE = f"<!-- `{COMMAND}` writes this page. -->"
TITLES = {"data": "Data", "student": "Student", "losses": "Losses", "training": "Training", "finetune": "Fine-tuning"}

CONFIGURATION = """\
# Configuration

A run is configured by a recipe: a YAML file with the sections `data`, `student`, `losses` and `training`. A setting
that the file leaves out has its default. The same settings are options of the command line, where they override the
file:

```
ds-distill distill --config R.yaml --training.max_tokens 1M --losses.cosine 0
```

```yaml
# R.yaml
training:
  max_tokens: 1M
losses:
  cosine: 0
```

A recipe may also hold any other option of a command under its name, such as `teacher` and `corpus`: see
[Commands](cli.md). [Getting started](getting_started.md#write-values-and-read-results) explains how values may be
written. The recipes in `ds_configs/` say where their numbers come from.

In the tables a dash stands for "none". Numbers must lie within the limits, both ends included."""

TERMS = """\
`losses.match` is a list of entries with these keys. [How to add a loss](dev/adding_a_loss.md) shows where the losses
are."""

STAGES = """\
`stages` is a list of entries with these keys: the parts of a run, one after the other, each with an objective of its
own. [Distill in stages](guide/stages.md) explains them with examples."""

FINETUNE = """\
These are the settings of `ds-distill finetune`. In a study's plan they stand under `finetune`, too.
[Fine-tune](guide/finetuning.md) explains the command. `ds-distill multitask` reads {read}; there, the default of
`learning_rate` is 1e-4, and that of `epochs` 4."""

STUDY = """\
These are the keys of a plan, the YAML file of `ds-distill study`, and also options of that command.
[Run studies](guide/studies.md) explains them with an example."""

VARIANTS = """\
`variants` of a plan maps names to mappings with these keys. Each is a row of the report.
[Run studies](guide/studies.md#compare-ways-to-fine-tune) has an example."""

CLI = """\
# Commands

`ds-distill COMMAND --help` shows the same in a terminal. Every option may also stand in the YAML file of `--config`,
under its name without the dashes. [Getting started](getting_started.md#write-values-and-read-results) explains how
values may be written. In the tables a dash stands for "none"."""


# What a family of encoders can do or not: the heading of a column, as docs/guide/families.md explains it, the same in a
# sentence, and whether a family can.
ABILITIES: list[tuple[str, str, Callable[[Family], bool]]] = [
    ("attention scores", "compare attention scores", lambda family: not family.scores_positions),
    ("documents apart", "keep packed documents apart", lambda family: family.mask != "tokens"),
    ("forced layers", "train single layers", lambda family: family.layers_stand_alone),
    ("recomputed", "recompute layers", lambda family: family.recomputes),
    ("pruned", "be pruned", lambda family: family.outputs is not None),
]


def main() -> None:
    """Write all pages."""
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
        print(f"written to {file}")


def pages() -> dict[Path, str]:
    """Return the text of each page, by its file."""
    whole = {DOCS / "configuration.md": configuration(), DOCS / "cli.md": commands()}
    parts = {ROOT / "README.md": list_families(), DOCS / "guide" / "families.md": f"\n{families_table()}\n"}
    return whole | {file: _put_between_marks(file.read_text(encoding="utf-8"), text) for file, text in parts.items()}


def _put_between_marks(page: str, text: str) -> str:
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    return f"{before}{BEGIN}{text}{END}{after}"


def list_families() -> str:
    """Return what people call the supported encoders, and what each can do, as sentences have it."""
    short = {name: family.title.partition(" (")[0].removesuffix("-v2 and v3") for name, family in FAMILIES.items()}
    lacking: dict[tuple[str, ...], list[str]] = {}  # families by what they cannot do
    for name, family in FAMILIES.items():
        if lacks := tuple(what for _, what, can in ABILITIES if not can(family)):
            lacking.setdefault(lacks, []).append(short[name])
    limits = [f"{_listed(names)} cannot {_listed(lacks, 'or')}" for lacks, names in lacking.items()]
    all_of_them = _listed([family.title for family in FAMILIES.values()])
    return f"{all_of_them}.\n  {'; '.join(limits)}"


def families_table() -> str:
    """Return the table of what each family of encoders can do."""
    rows = []
    for family in FAMILIES.values():
        students = list_students(family)
        names = ", ".join(f"`{name}`" for name in students)
        able = ("yes" if can(family) else "no" for _, _, can in ABILITIES)
        rows.append([family.title, f"`{family.name}`", names, *able])
    return _table(["encoder", "`model_type`", "student", *(heading for heading, _, _ in ABILITIES)], rows)


def configuration() -> str:
    """Return the page of all settings, with one table per section."""
    parts = [CONFIGURATION, NOTE]
    for name, section in SECTIONS.items():
        lead = docstring_parser.parse(section.__doc__ or "").short_description or ""
        parts += [f"## {TITLES[name]}", lead, _settings(name, section)]
        if name == "losses":
            parts += ["## Loss terms", TERMS, _settings("", Match)]
    parts += ["## Stages", STAGES, _settings("", Stage)]
    parts += [
        f"## {TITLES['finetune']}",
        FINETUNE.format(read=_listed([f"`{name}`" for name in READ])),
        _settings("finetune", FinetuneConfig),
        "## Study",
        STUDY,
        _study(),
    ]
    parts += ["## Variants", VARIANTS, _settings("", Variant)]
    return "\n\n".join(parts) + "\n"


def _listed(names: Sequence[str], word: str = "and") -> str:
    """Return names as a sentence has them, with `word` before the last one."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def commands() -> str:
    """Return the page of all commands, with one table of options per command."""
    parsers = _parsers()
    purposes = [[f"[`{name}`](#{name})", _cell(COMMANDS[name].PURPOSE)] for name in parsers]
    common = [action for action in parsers["env"]._actions if action.dest in COMMON]
    parts = [CLI, NOTE, _table(["command", "purpose"], purposes), "Every command has these options:", _options(common)]
    for name, parser in parsers.items():
        purpose = _cell(COMMANDS[name].PURPOSE)
        examples = f"```\n{COMMANDS[name].EXAMPLES.strip()}\n```"
        parts += [f"## {name}", f"{purpose[0].upper()}{purpose[1:].rstrip('.')}.", examples]
        if own := _options(parser._actions, COMMON):
            parts.append(own)
    return "\n\n".join(parts) + "\n"


def _parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, by its name."""
    return build_parser()._subcommands_action._name_parser_map


def _settings(name: str, section: Any) -> str:
    """Return the table of a section's settings, with a column of limits where any setting has them."""
    hints, described = get_type_hints(section, include_extras=True), _described(section)
    columns, limited = ["key", "type", "default"], any("limits" in setting.metadata for setting in fields(section))
    rows = []
    for setting in fields(section):
        key = f"{name}.{setting_name(setting.name)}" if name else setting.name
        row = [f"`{key}`", type_in_words(hints[setting.name]), shown(_default(setting))]
        rows.append([*row, *([_limits(setting)] if limited else []), _cell(described[setting.name])])
    return _table([*columns, *(["limits"] if limited else []), "description"], rows)


def _default(setting: Field) -> Any:
    """Return the default of a setting; None where it has none."""
    if setting.default_factory is not MISSING:
        return setting.default_factory()
    return None if setting.default is MISSING else setting.default


def _study() -> str:
    """Return the table of a plan's keys. Types and defaults are those of the command, which makes the plan."""
    options = {action.dest: action for action in _parsers()["study"]._actions}
    described = _described(Study)
    rows = []
    for option in (options[key.name] for key in fields(Study)):
        text = described.get(option.dest) or option.help
        rows.append([f"`{option.dest}`", _describe_type(option), shown(option.default), _cell(text)])
    return _table(["key", "type", "default", "description"], rows)


def _options(actions: Iterable[argparse.Action], without: Sequence[str] | dict = ()) -> str:
    """Return the table of a command's options. Sections of settings have one row, which links to their tables."""
    rows = []
    for action in actions:
        section = action.dest.partition(".")[0]
        if action.dest in without or action.dest.endswith(".help") or (section in TITLES and "." in action.dest):
            continue
        if section in TITLES and not isinstance(action, Value):
            link = f"[{TITLES[section]}](configuration.md#{TITLES[section].lower()})"
            rows.append([f"`--{section}.…`", "settings", NONE, f"see {link}"])
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings if not name.endswith("+"))
        default = NONE if action.nargs == 0 else shown(action.default)
        text = _cell(COMMON.get(action.dest) or action.help)
        rows.append([names or f"`{action.dest.upper()}`", _describe_type(action), default, text])
    return _table(["option", "type", "default", "description"], rows)


def _describe_type(action: Any) -> str:
    """Return the type of an option in words."""
    if not isinstance(action, Value):
        return "path" if action.dest == "config" else "flag"
    if action._typehint == (Name | None) and action.metavar:
        return cast(str, action.metavar)
    return type_in_words(list[action._typehint] if action.nargs in ("+", "*") else action._typehint)


def _limits(setting: Field) -> str:
    """Return the limits of a setting, which `Recipe.check` sees to."""
    return " to ".join(map(_limit, setting.metadata["limits"])) if "limits" in setting.metadata else NONE


def _limit(number: float) -> str:
    """Return a number; a large one as a power of 10 or 2, or one less than that."""
    for base in (10, 2):
        for exponent in range(5, 64):
            power = f"{base}{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
            if number == base**exponent > 10**5:
                return power
            if number == base**exponent - 1 > 10**5:
                return f"{power} − 1"
    return f"{number:g}"


def _described(section: Any) -> dict[str, str]:
    """Return the descriptions under `Args:` in the docstring of a class, by name."""
    return {entry.arg_name: entry.description or "" for entry in docstring_parser.parse(section.__doc__ or "").params}


def _cell(text: str | None) -> str:
    """Return a text in one line, without characters that Markdown would take for its own, except in backticks."""
    parts = re.split(r"(`[^`]*`)", " ".join((text or "").split()))
    return "".join(part if part.startswith("`") else re.sub(r"([|*<])", r"\\\1", part) for part in parts)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown. Cells are not padded, so that a change of one row changes one line."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
