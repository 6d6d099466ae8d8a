"""Intervals are steps or times, on the command line, in a recipe file and from Python."""

import pytest

from ds_distill.cli.arguments import check_recipe
from ds_distill.cli.parser import build_parser
from ds_distill.config.intervals import interval_seconds
from ds_distill.recipe import Recipe
from ds_distill.utils.errors import UserError

PARSER = build_parser()


@pytest.mark.parametrize("in_a_file", [False, True], ids=["option", "file"])
@pytest.mark.parametrize(
    ("written", "read", "seconds"),
    [
        ("500", 500, None),
        ("10k", 10_000, None),
        ("0", 0, None),
        ("auto", "auto", None),
        ("90s", "90s", 90.0),
        ("10m", "10m", 600.0),
        ("1.5h", "1.5h", 5400.0),
    ],
)
def test_steps_and_times(written, read, seconds, in_a_file, tmp_path):
    (tmp_path / "r.yaml").write_text(f"training: {{save_every: {written}, eval_every: {written}}}\n")
    words = ["--training.save_every", written, "--training.eval_every", written]
    words = ["--config", str(tmp_path / "r.yaml")] if in_a_file else words
    training = check_recipe(PARSER.parse_args(["distill", *words]).distill).training
    assert training.save_every == training.eval_every == read
    assert interval_seconds(training.save_every) == seconds


@pytest.mark.parametrize("written", ["10M", "-5", "1.5", "10 min", "soon", "0s", "0.5s", "1e9h", "1e12", "[3]", ""])
def test_what_is_neither_is_refused_in_one_sentence(written):
    with pytest.raises(UserError, match=r"^training\.save_every\b[^\n]*(10m|720h)"):
        PARSER.parse_args(["distill", "--training.save_every", written])


@pytest.mark.parametrize("value", [None, True, 2.5, -1, "10M", ["10m"]])
def test_a_wrong_value_from_python_is_refused_too(value):
    recipe = Recipe()
    recipe.training.eval_every = value
    with pytest.raises(UserError, match=r"^training\.eval_every\b"):
        recipe.check()
