"""A model is pruned in two cuts, each distilled from the whole one, and what comes out is read by other commands."""

import json

from ds_distill import load
from ds_distill.models.layer_shapes import LayerShape, layer_shapes
from tests.start import ds_distill, run_ranks


def pruning_options(world, common, output):
    match = "[{loss: mse, of: hidden, layers: uniform}]"
    options = ["prune", "--model", world / "teacher", *common, "--output", output, "--distill", "--runtime", "flops"]
    return [*options, "--target", "1.3x", "2x", "--shape", "1x32", "--sequences", 64, "--losses.match", match]


def test_two_ranks_train_what_one_has_cut(world, common, tmp_path):
    """Each rank reads its share of every batch; the cuts are the first rank's."""
    summaries = []
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        options = ["--training.deepspeed", "ds_configs/deepspeed/zero2.json", "--training.dropout", 0]
        run_ranks(ranks, "ds_distill", *pruning_options(world, common, output), *options)
        summaries.append(json.loads((output / "summary.json").read_text()))
        for cut in ("cut-1", "cut-2"):
            states = list((output / cut / "distilled").rglob("*pp_rank_1_*optim_states.pt"))
            assert bool(states) == (ranks == 2), "the second rank holds its part of the optimizer's state"
    one, two = summaries
    assert [cut["layers"] for cut in one["cuts"]] == [cut["layers"] for cut in two["cuts"]]
    assert one["steps"] == two["steps"]
    assert abs(two["heldout_mask_loss"] / one["heldout_mask_loss"] - 1) < 1e-4


def test_two_cuts_with_training_between_them(world, common, tmp_path):
    output = tmp_path / "run"
    options = pruning_options(world, common, output)
    done = ds_distill(*options)
    assert done.returncode == 0, done.stderr[-3000:]
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

    done = ds_distill(*options)
    assert done.returncode == 0 and done.stderr.count("finished before") == 4, done.stderr[-3000:]
    again = json.loads((output / "summary.json").read_text())
    assert again["cuts"] == summary["cuts"] and again["heldout_mask_loss"] == summary["heldout_mask_loss"]

    done = ds_distill("evaluate", "--model", output, "--tokens", output / "tokens", "--output", tmp_path / "evaluated")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "evaluated" / "summary.json").read_text())
    assert abs(found["heldout_mask_loss"] / summary["heldout_mask_loss"] - 1) < 1e-4
