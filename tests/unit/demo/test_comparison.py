"""Test what the demo compares and tells: word counts, one model's lead over another, and commands to type."""

import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_distill.data.run_data import prepare_tokens
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.demo.comparison import LEAD, WORD_COUNTS, guess_by_counts, measure
from ds_distill.demo.result import lead_sentence, next_commands
from ds_distill.demo.run import SHIPPED_TEACHER
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import build_student
from ds_distill.recipe import Recipe


def test_word_counts_guess_by_frequency():
    labels = torch.tensor([[-100, 2, 0], [1, -100, 2]])
    results = guess_by_counts(labels, np.array([3, 0, 5]))
    expected = [6 / 11, 4 / 11, 1 / 11, 6 / 11]  # the counts and one more of each
    assert results[:, 0].tolist() == pytest.approx([-math.log(share) for share in expected])
    assert results[:, 1].tolist() == [1, 0, 0, 1]


def test_the_lead_is_the_difference_of_two_rows(tmp_path):
    text = "\n\n".join(
        f"Return the value number {i} of the default argument, or None if it is not set." for i in range(99)
    )
    (tmp_path / "text.txt").write_text(text)
    recipe = Recipe()
    recipe.data.sequence_length, recipe.data.heldout_fraction, recipe.training.micro_batch_size = 32, 0.5, 7
    prepare_tokens([str(tmp_path / "text.txt")], load_tokenizer(SHIPPED_TEACHER), tmp_path / "tokens", recipe, 0.5)
    teacher = load_masked_lm(str(SHIPPED_TEACHER))
    models = {"teacher": teacher, "student": build_student(teacher), "same": build_student(teacher)}
    folders = (tmp_path / "tokens", tmp_path / "tokens")
    rows, lead = measure(models, *folders, recipe, ("teacher", "student"))
    counts, first, second, same = rows
    assert [row["model"] for row in rows] == [WORD_COUNTS, *models] and first["kept"] == 1 and LEAD not in str(rows)
    assert second["mask_loss"] == same["mask_loss"] > first["mask_loss"] and counts["parameters"] is None
    assert lead["mask_loss"] == pytest.approx(second["mask_loss"] - first["mask_loss"])
    assert lead["mask_accuracy"] == pytest.approx(first["mask_accuracy"] - second["mask_accuracy"])
    _, none = measure(models, *folders, recipe, ("student", "same"))
    assert none["mask_accuracy"] == none["mask_accuracy_se"] == 0
    assert measure(models, *folders, recipe)[1] == {}


def test_the_lead_in_words():
    words = lambda lead, error: lead_sentence(  # noqa: E731
        {"distilled_ahead_accuracy": lead, "distilled_ahead_accuracy_se": error}
    )
    assert "is 4.3 ± 0.4 points of accuracy ahead of the one without a teacher, which is 10.0 standard" in words(
        0.043, 0.0043
    )
    assert "is 1.0 ± 2.0 points of accuracy behind the one" in words(-0.01, 0.02)
    assert words(None, None) == words(0.01, None) == words(0.01, 0.0) == ""


@pytest.mark.parametrize("name", ["demo", "de mo", "d'emo", '$(d) "e" mo'])
def test_the_command_that_asks_the_student_is_one_for_a_shell(name):
    _, command = next_commands(Path("runs") / name)[0]
    shell, option, program = shlex.split(command)
    folder = str(Path("runs") / name / "distilled" / "export")
    assert (shell, option) == ("python", "-c") and repr(folder) in program and compile(program, "", "exec")
