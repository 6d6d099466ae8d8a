"""The pages that are made from the dataclasses and the parser."""

from typing import Any, Literal

import pytest

from ds_distill.cli.commands import COMMANDS
from ds_distill.cli.manual import commands, configuration
from ds_distill.cli.option_words import shown, type_in_words, with_article
from ds_distill.config.values import UserPath
from ds_distill.recipe import Match, Stage
from ds_distill.study.plan import FINETUNE_SETTINGS, SETTINGS, Study
from ds_distill.study.variants import Variant


def test_every_setting_has_a_row_with_a_description():
    rows = [line.strip("| ").split(" | ") for line in configuration().splitlines() if line.startswith("| `")]
    keys = {row[0].strip("`") for row in rows}
    assert keys == {
        *SETTINGS,
        *(f"finetune.{name}" for name in FINETUNE_SETTINGS),
        *Study.__dataclass_fields__,
        *Match.__dataclass_fields__,
        *Stage.__dataclass_fields__,
        *Variant.__dataclass_fields__,
    }
    assert all(len(row) in (4, 5) and row[-1] for row in rows)


def test_every_command_has_a_section_with_its_options():
    page = commands()
    assert [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")] == list(COMMANDS)
    assert "`--first_seed`" in page and "configuration.md#fine-tuning" in page


@pytest.mark.parametrize(
    "hint, words",
    [
        (int, "whole number"),
        (UserPath | None, "path"),
        (list[float], "list of numbers"),
        (tuple[float, float], "2 numbers"),
        (int | Literal["auto"], "whole number or `auto`"),
        (list[tuple[int, int]], "list of lists of 2 whole numbers"),
        (list[Match], "list of [loss terms](#loss-terms)"),
        (dict[str, int], "mapping of names to whole numbers"),
    ],
)
def test_types_in_words(hint, words):
    assert type_in_words(hint) == words


@pytest.mark.parametrize(
    "hint, words",
    [
        (int, "a whole number"),
        (UserPath | None, "a path"),
        (dict[str, int], "a mapping of names to whole numbers"),
        (list[Match], "a list of loss terms"),
        (tuple[float, float], "2 numbers"),
        (Literal["a", "b"], "one of a, b"),
    ],
)
def test_types_in_a_sentence(hint, words):
    assert with_article(type_in_words(hint)) == words


def test_a_type_without_words_is_refused():
    with pytest.raises(TypeError, match="no words"):
        type_in_words(Any)


@pytest.mark.parametrize(
    "value, text",
    [(None, "–"), ([], "–"), (False, "`false`"), (0, "`0`"), (5e-4, "`0.0005`"), ((0.9, 0.98), "`[0.9, 0.98]`")],
)
def test_defaults_as_yaml_has_them(value, text):
    assert shown(value) == text
