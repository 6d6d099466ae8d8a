"""Test what a command prints at its end for a person."""

import shlex
import sys
from pathlib import Path

import pytest

from ds_distill.reporting.closing import as_typed, format_closing, format_commands, join, training_result
from ds_distill.reporting.heldout import describe_heldout, share_kept
from ds_distill.utils import shell

WORDS = ["finetune", "--task", "sst2", "--model", "runs/it's a model", "--output", "a rather long folder" * 3, "--x", 1]


def test_a_shell_reads_a_command_as_it_was_meant():
    text = join(WORDS)
    assert shlex.split(text.replace("\\\n", "")) == ["ds-distill", *map(str, WORDS)]
    assert max(len(line) for line in text.splitlines() if "long folder" not in line) <= 80 and "\n" in text
    assert join(["report", "runs"]) == "ds-distill report runs"


@pytest.mark.parametrize("on_path", [False, True])
def test_the_environment_is_activated_where_the_shell_does_not_find_the_program(on_path, tmp_path, monkeypatch):
    folder = tmp_path / "an env" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").touch()
    (folder / "ds-distill").touch(0o755)
    monkeypatch.setattr(sys, "prefix", str(folder.parent))
    monkeypatch.setattr(shell, "PATH", str(folder) if on_path else "")
    monkeypatch.setenv("PATH", str(folder))  # where builds have put it since
    monkeypatch.chdir(tmp_path)
    text = format_commands([("see it", "ds-distill report runs")])
    assert text.endswith("# see it\nds-distill report runs")
    assert ("source 'an env/bin/activate'" in text) != on_path
    monkeypatch.chdir(folder.parent.parent.parent)
    assert on_path or str(Path(tmp_path.name) / "an env" / "bin" / "activate") in format_commands([("", "x")])
    assert format_commands([]) == "" and format_closing("", "a", "", "b") == "\na\n\nb"


def figures(kinds: str, prefix: str = "", **changes) -> dict:
    values = {"loss": 2.5, "loss_se": 0.25, "accuracy": 0.125, "accuracy_se": 0.01, "count": 40} | changes
    return {f"{prefix}{kind}_{name}": value for kind in kinds.split() for name, value in values.items()}


def test_the_result_of_a_run_is_a_table(tmp_path):
    summary = {"steps": 1200, "tokens": 2_500_000, "tokens_per_second": 900.4, "export": "r/export", "parameters": 7}
    summary |= figures("mask mlm", "start_heldout_", loss=9.0) | figures("mask mlm", "heldout_")
    summary["heldout_sets"] = {"books": figures("mask mlm", loss=None, accuracy=None, loss_se=None, accuracy_se=None)}
    table, facts = training_result(summary, "r")
    assert table.splitlines() == [
        "at [MASK]                  loss (nats)      accuracy",
        "held-out text, at start  9.000 ± 0.250  12.5 ± 1.0 %",
        "held-out text, at end    2.500 ± 0.250  12.5 ± 1.0 %",
        "books, at end                        –             –",
    ]
    assert facts.splitlines() == [
        "trained  1,200 steps, 2.5 M tokens, 900 tokens per second",
        "model    r/export (7 parameters)",
        "files    summary.json and loss.png in r",
    ]
    (tmp_path / "tensorboard").mkdir()
    _, facts = training_result(summary, str(tmp_path))
    assert facts.endswith(f"\nfiles    summary.json, loss.png and tensorboard in {tmp_path}")
    summary |= figures("mask mlm", "teacher_heldout_", accuracy=0.25)
    summary["kept"] = share_kept(summary["heldout_mask_accuracy"], summary["teacher_heldout_mask_accuracy"])
    table, facts = training_result(summary, "r")
    assert table.splitlines()[3] == "the teacher              2.500 ± 0.250  25.0 ± 1.0 %"
    assert facts.startswith("kept     40 predictions are too few to tell\n")
    _, facts = training_result(summary | {"heldout_mask_count": 100}, "r")
    # a standard error of 0.01 is 8 % of 12.5 %, and 4 % of 25 %
    assert facts.startswith("kept     50.0 ± 4.5 % of the teacher's accuracy\n")
    _, facts = training_result(summary | {"heldout_mask_count": 100, "start_heldout_mask_accuracy": 0.2}, "r")
    assert "teacher's accuracy; the student's accuracy is lower than at the start" in facts
    _, facts = training_result(summary | {"heldout_mask_count": 100, "teacher_heldout_mask_accuracy": 0.05}, "r")
    assert "teacher's accuracy; this says little, because the teacher's accuracy is low on this text (5.0%)" in facts


def test_the_share_kept_is_of_a_teacher_that_knows_something():
    assert share_kept(0.3, 0.4) == pytest.approx(0.75) and share_kept(0.0, 0.4) == 0
    assert share_kept(0.3, 0.0) is share_kept(0.3, None) is share_kept(None, 0.4) is None


@pytest.mark.parametrize("installed", [False, True])
def test_what_an_export_needs_is_installed_first(monkeypatch, installed):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed or None)
    commands = [command for _, command in as_typed("convert", ["export", "--model", "a b"])]
    assert commands == ["pip install 'ds-distill[deploy]'"][installed:] + ["ds-distill export --model 'a b'"]
    assert as_typed("see", ["report", "x"]) == [("see", "ds-distill report x")]


def test_held_out_figures_of_an_earlier_version_are_told_as_such():
    assert describe_heldout(figures("mask mlm")) == "loss 2.500 ± 0.250 nats, accuracy 12.5 ± 1.0 % at [MASK]"
    earlier = {"mlm_loss": 2.5, "mlm_accuracy": 0.125}
    assert describe_heldout(earlier) == "loss 2.500 nats, accuracy 12.5 % at all selected positions"


def test_a_bare_encoder_shows_its_terms(tmp_path):
    summary = {
        "steps": 10,
        "tokens": 900,
        "tokens_per_second": None,
        "export": "r/export",
        "parameters": 7,
        "loss": 9.0,
    }
    terms = {"mse": 0.25, "mse_se": 0.0125, "cosine": 0.0312, "cosine_se": 0.002, "loss": 0.5, "loss_se": None}
    for prefix in ("start_heldout_", "heldout_"):
        summary |= {f"{prefix}{name}": value for name, value in terms.items()} | {f"{prefix}count": 40}
    summary["heldout_sets"] = {"books": terms | {"cosine": None}}
    table, _ = training_result(summary, "r")
    assert table.splitlines() == [
        "                                 mse          cosine  loss",
        "held-out text, at start  0.25 ± 0.01  0.0312 ± 0.002   0.5",
        "held-out text, at end    0.25 ± 0.01  0.0312 ± 0.002   0.5",
        "books, at end            0.25 ± 0.01               –   0.5",
    ]
    assert describe_heldout(terms | {"count": 40}) == "mse 0.25 ± 0.01, cosine 0.0312 ± 0.002, loss 0.5"
