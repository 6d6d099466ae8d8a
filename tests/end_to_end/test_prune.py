"""A model is pruned in two cuts, each distilled from the whole one, and what comes out is read by other commands."""

import json

import pytest

from ds_distill import load
from ds_distill.models.layer_shapes import LayerShape, layer_shapes
from tests.start import ds_distill, run_ranks


@pytest.fixture(scope="module")
def options(world, common):
    """Dropout is drawn by each rank, so it is left out."""
    match = "[{loss: mse, of: hidden, layers: uniform}]"
    words = [
        "prune",
        "--model",
        world / "teacher",
        *common,
        "--distill",
        "--runtime",
        "flops",
        "--target",
        "1.3x",
        "2x",
    ]
    words += ["--shape", "1x32", "--sequences", 16, "--losses.match", match, "--training.dropout", 0]
    return [*words, "--training.deepspeed", "ds_configs/deepspeed/zero2.json"]


@pytest.fixture(scope="module")
def output(options, tmp_path_factory):
    """The folder of one rank's run."""
    folder = tmp_path_factory.mktemp("prune") / "run"
    done = ds_distill(*options, "--output", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_ranks_train_what_one_has_cut(options, output, tmp_path):
    """Each rank reads its share of every batch; the cuts are the first rank's."""
    run_ranks(2, "ds_distill", *options, "--output", tmp_path / "run")
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (output, tmp_path / "run"))
    for cut in ("cut-1", "cut-2"):
        states = (tmp_path / "run" / cut / "distilled").rglob("*pp_rank_1_*optim_states.pt")
        assert list(states), "the second rank holds its part of the optimizer's state"
    assert [cut["layers"] for cut in one["cuts"]] == [cut["layers"] for cut in two["cuts"]]
    assert one["steps"] == two["steps"]
    assert abs(two["heldout_mask_loss"] / one["heldout_mask_loss"] - 1) < 1e-4


def test_two_cuts_with_training_between_them(options, output, tmp_path):
    summary = json.loads((output / "summary.json").read_text())
    first, second = summary["cuts"]
    assert first["speedup"] >= 1.3 and second["speedup"] >= 2 and summary["steps"] == 10
    shapes = [[LayerShape(**layer) for layer in cut["layers"]] for cut in (first, second)]
    for before, now in zip(*shapes, strict=True):
        assert now.heads <= before.heads and now.feed_forward <= before.feed_forward
    student = load(output / "export")
    assert layer_shapes(student.config) == shapes[1] and summary["parameters"] == student.num_parameters()
    assert summary["heldout_mask_loss"] < second["loss_saliency"], "distilling repairs what the cut has cost"
    assert "set_submodule" in (output / "export" / "README.md").read_text()

    made_of_it = output / "export" / "onnx" / "model.onnx"
    made_of_it.parent.mkdir()
    made_of_it.touch()
    longer = ds_distill(*options, "--output", output, "--training.max_tokens", 5120)
    assert (
        longer.returncode == 2
        and "is 5120: cut 2 was made from the student that the shorter run produced" in longer.stderr
    )
    done = ds_distill(*options, "--output", output)
    assert made_of_it.is_file(), "of the same model"
    assert done.returncode == 0 and done.stderr.count("finished before") == 4, done.stderr[-3000:]
    again = json.loads((output / "summary.json").read_text())
    assert again["cuts"] == summary["cuts"] and again["heldout_mask_loss"] == summary["heldout_mask_loss"]

    done = ds_distill("evaluate", "--model", output, "--tokens", output / "tokens", "--output", tmp_path / "evaluated")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "evaluated" / "summary.json").read_text())
    assert abs(found["heldout_mask_loss"] / summary["heldout_mask_loss"] - 1) < 1e-4
