"""Test what a run does along its way by default, and what can follow it: more of it, or a run from its student."""

import json

import pytest

from tests.start import Process, ds_distill


@pytest.fixture(scope="module")
def run(world, common, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    options = ["distill", "--teacher", world / "teacher", *common, "--output", output]
    process = Process("tests.end_to_end.clock_worker", *options, "--training.save_total_limit", 100)
    done = process.wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "losses: 5 KL at masked tokens + 2 masked LM + 200 cosine, as for few tokens" in done.stderr
    return output, options, json.loads((output / "summary.json").read_text())


def steps_of_checkpoints(output):
    return sorted(int(path.name.removeprefix("step-")) for path in (output / "checkpoints").iterdir())


def test_ten_evaluations_and_saves_by_the_clock(run):
    output, _, summary = run
    heldout = json.loads((output / "curves.json").read_text())["heldout"][""]
    assert [row["step"] for row in heldout] == list(range(11))
    assert steps_of_checkpoints(output) == list(range(1, 11)) and summary["steps"] == 10
    settings = json.loads((output / "run.json").read_text())
    assert (settings["losses.kl_tokens"], settings["losses.cosine"]) == ("masked", 200.0)


def test_a_finished_run_continues_with_more_tokens(run):
    output, options, summary = run
    before = json.loads((output / "curves.json").read_text())["history"]
    done = ds_distill(*options, "--training.max_tokens", 2 * 2560)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "training.max_tokens was 2560, is 5120: the run continues" in done.stderr
    longer = json.loads((output / "summary.json").read_text())
    history = json.loads((output / "curves.json").read_text())["history"]
    assert longer["steps"] == 20 and longer["tokens"] > summary["tokens"]
    assert history[:10] == before and len(history) == 20, "the first steps are not taken again"
    assert longer["heldout_mlm_loss"] < summary["heldout_mlm_loss"]

    done = ds_distill(*options)
    assert done.returncode == 2 and "training.max_tokens was 5120, is 2560" in done.stderr


def test_a_student_starts_from_the_student_of_a_run(run, world, common, tmp_path):
    first = run[0]
    summary = json.loads((first / "summary.json").read_text())
    output = tmp_path / "second"
    options = ["distill", "--teacher", world / "teacher", *common, "--output", output, "--student.from", first]
    done = ds_distill(*options)
    assert done.returncode == 0, done.stderr[-3000:]
    second = json.loads((output / "summary.json").read_text())
    for figure in ("loss", "accuracy", "count"):  # it is the same model, in the same text and under the same masks
        assert second[f"start_heldout_mask_{figure}"] == summary[f"heldout_mask_{figure}"]
    card = (output / "export" / "README.md").read_text()
    assert f"It started from the weights of `{first.name}/export`" in card

    done = ds_distill(*options[:-1], world / "teacher")  # a model of another shape
    assert done.returncode == 2 and "student.from was " in done.stderr
    done = ds_distill(*options[:-2])
    assert done.returncode == 2 and "student.from was " in done.stderr
