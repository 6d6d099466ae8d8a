"""Test `training.report_to` as a user runs it, with the libraries that are installed and without a network."""

import json
import signal

import pytest

from ds_distill.tracking.choice import LIBRARIES
from tests.start import Process, ds_distill
from tests.tracked import INSTALLED, figures


def test_a_missing_library_is_refused_before_anything_is_made(world, common, tmp_path):
    name = next((name for name in LIBRARIES if name not in INSTALLED), None)
    if name is None:
        pytest.skip("the libraries of all trackers are installed")
    output = tmp_path / "run"
    teacher = world / "teacher"
    commands = {
        "training.report_to": ["distill", "--teacher", teacher, *common],
        "--report_to": ["finetune", "--task", "sst2", "--model", teacher],
    }
    for key, words in commands.items():
        done = ds_distill(*words, "--output", output, f"--{key.removeprefix('--')}", f"tensorboard,{name}")
        assert done.returncode == 2 and not output.exists(), done.stderr
        assert (
            f"{key} = {name}: the package {name} is not installed; run pip install 'ds-distill[{name}]'" in done.stderr
        )


@pytest.mark.skipif(not INSTALLED, reason="no library of a tracker is installed")
def test_a_run_that_is_killed_and_later_continued_is_one_run_and_trains_as_without_trackers(world, common, tmp_path):
    quick = ["--training.compile", "off", "--training.save_every", 3, "--training.eval_every", 4]
    job = ["distill", "--teacher", world / "teacher", *common, *quick]
    alone, tracked = tmp_path / "alone", tmp_path / "tracked"
    assert ds_distill(*job, "--output", alone, "--training.report_to", "[]").returncode == 0
    assert not any((alone / name).exists() for name in ("tensorboard", "trackers"))

    job = [*job, "--output", tracked, "--training.report_to", ",".join(INSTALLED)]
    killed = Process(
        "tests.end_to_end.interrupted_worker", "SIGKILL", "step", 7, *job, WANDB_MODE="offline"
    )  # the checkpoint of step 3 is there, since the next one waits for it
    assert killed.wait().returncode == -signal.SIGKILL
    done = ds_distill(*job, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr[-3000:]

    assert (tracked / "curves.json").read_text() == (alone / "curves.json").read_text()
    assert not (tracked / "tensorboard").exists()

    done = ds_distill(*job, "--training.max_tokens", 5120, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr[-3000:]
    curves = json.loads((tracked / "curves.json").read_text())
    assert len(curves["history"]) == 20
    for name in INSTALLED:
        kept = figures(name, tracked / "trackers")
        assert len({id for id, *_ in kept}) == 1, done.stderr
        for key, rows, column in (
            ("loss/total", curves["history"], "loss"),
            ("heldout/mask_loss", curves["heldout"][""], "mask_loss"),
        ):
            mine = [(step, value) for _, figure, step, value in kept if figure == key]
            assert mine == [(row["step"], pytest.approx(row[column])) for row in rows], (name, key)
