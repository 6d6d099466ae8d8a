"""Test `python -m benchmarks.training.time_to_loss` and `python -m benchmarks.training.packing` on a tiny teacher.

An interrupted comparison must resume.
"""

import json

import pytest
import torch

from tests.start import Process

MINUTES = 0.05


def compare(world, output, *options):
    config = output.parent / "recipe.yaml"
    config.write_text(
        "data: {sequence_length: 32, heldout_fraction: 0.05}\n"
        "training: {global_batch_size: 8, micro_batch_size: 4, learning_rate: 1.0e-3, "
        "precision: fp32, compile: 'off'}\n"
    )
    words = [
        "--minutes",
        MINUTES,
        "--teacher",
        world / "teacher",
        "--corpus",
        world / "text.txt",
        "--config",
        config,
        "--evaluations",
        2,
        "--blocks",
        2,
        "--trainers",
        "plain_bf16",
        "engine",
        "--output",
        output,
        *options,
    ]
    return Process("benchmarks.training.time_to_loss", *words).wait()


@pytest.fixture(scope="module")
def comparison(world, tmp_path_factory):
    """Return the folder of a finished comparison, and its summary."""
    folder = tmp_path_factory.mktemp("time_to_loss") / "comparison"
    done = compare(world, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ahead in every metric at" in done.stdout and (folder / "time_to_loss.png").is_file()
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_all_train_for_the_same_time(world, comparison):
    folder, result = comparison
    for row in result["trainers"]:
        assert row["minutes"] >= MINUTES - row["s/step"] / 120 and row["steps"] > 2
    for name in ("plain_bf16", "engine"):
        rows = json.loads((folder / name / "curve.json").read_text())["rows"]
        # The rows are before training, halfway and at the end; the small model learns the corpus's few words.
        assert len(rows) == 3 and rows[0][0] == 0 and rows[-1][2][""][0] < rows[0][2][""][0]
        assert set(rows[0][2]) == {""} and all(
            kl >= 0 and 0 <= same <= 1 for _, _, sets in rows for _, kl, same in sets.values()
        )

    other = compare(world, folder, "--minutes", 1)
    assert other.returncode == 2 and "holds a comparison with other options" in other.stderr


@pytest.mark.long
def test_a_comparison_resumes(world, comparison):
    folder, result = comparison
    other = compare(world, folder, "--heldout", world / "text.txt")
    assert other.returncode == 2 and "holds a comparison with other options" in other.stderr

    # This is as if the comparison had begun with more threads.
    settings_file = folder / "asked.json"
    kept = settings_file.read_text()
    settings_file.write_text(kept.replace('"threads": 1', '"threads": 64'))
    other = compare(world, folder)
    assert (
        other.returncode == 2
        and "under other conditions (threads 64, here 1)" in other.stderr
        and "another --output" in other.stderr
    )
    settings_file.write_text(kept)

    # This is as if the comparison had been killed between its last checkpoint and its curve.
    curve = folder / "engine" / "curve.json"
    whole = curve.read_text()
    curve.unlink()
    again = compare(world, folder)
    assert again.returncode == 0, again.stderr[-3000:]
    assert curve.read_text() == whole and min(json.loads(whole)["masked_tokens"].values()) > 0

    # This is as if the comparison had been interrupted at half of its time.
    curve, kept = folder / "plain_bf16" / "curve.json", folder / "plain_bf16" / "checkpoint" / "state.pt"
    before = json.loads(curve.read_text())
    saved = torch.load(kept, weights_only=True)
    saved["state"] |= {"elapsed": 30 * MINUTES, "rows": before["rows"][:2]}
    torch.save(saved, kept)
    curve.unlink()
    again = compare(world, folder)
    assert again.returncode == 0, again.stderr[-3000:]
    after = json.loads(curve.read_text())
    assert after["rows"][:2] == before["rows"][:2] and after["step"] > before["step"]
    assert (
        after["elapsed"] >= 60 * MINUTES - after["seconds_per_step"] / 2
        and after["seconds_per_step"] == before["seconds_per_step"]
    )
    assert json.loads((folder / "engine" / "curve.json").read_text())["step"] == result["trainers"][1]["steps"], (
        "who has finished does not run again"
    )


def test_packing_says_what_it_brings(world):
    done = Process(
        "benchmarks.training.packing",
        "--teacher",
        world / "teacher",
        "--corpus",
        world / "text.txt",
        "--length",
        32,
        "--sequences",
        4,
        "--steps",
        2,
    ).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    batches = json.loads(done.stdout.splitlines()[-1])["batches"]
    assert (
        list(batches) == ["padded", "grouped", "packed"]
        and batches["padded"]["gain"] == batches["padded"]["promised"] == 1
    )
    padding = {name: float(row["padding"].removesuffix(" %")) for name, row in batches.items()}
    assert padding["packed"] < 5, "only the text's end fills no block"
    assert padding["grouped"] <= padding["padded"] and all(row["tokens_per_second"] > 0 for row in batches.values())
