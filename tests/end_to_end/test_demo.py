"""Test the main job, from text over tokenizer, teacher, student and baseline to the table.

It runs on several ranks, and then again from what is there.
"""

import json

from transformers import AutoModelForMaskedLM

from tests.start import start_ranks


def demo(output, text, *options):
    """Run on three ranks, which cannot share 8 sequences evenly; return the first one's ending and the output."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    ranks = start_ranks(
        3,
        "ds_distill",
        "run",
        "--corpus",
        text,
        "--output",
        output,
        "--model",
        json.dumps(sizes),
        "--vocabulary",
        300,
        "--teacher_tokens",
        1500,
        "--data.sequence_length",
        32,
        "--data.heldout_fraction",
        0.05,
        "--training.global_batch_size",
        8,
        "--training.micro_batch_size",
        8,
        "--training.max_tokens",
        1500,
        *options,
    )
    try:
        ends = [rank.wait() for rank in ranks]
        return ends[0], "".join(end.stderr for end in ends)
    finally:
        for rank in ranks:
            rank.kill()


def test_the_main_job_on_three_ranks(world, tmp_path):
    done, output = demo(tmp_path / "out", world / "text.txt")
    assert done.returncode == 0, output[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["model"] for row in summary["rows"]] == [
        "teacher",
        "student at start",
        "student, distilled",
        "student, no teacher",
    ]
    assert "micro-batch: 3 sequences, not 8: a rank's share of the global batch is 3" in output
    distilled, half = summary["rows"][2], AutoModelForMaskedLM.from_pretrained(summary["export"])
    assert (
        distilled["tokens"] >= 1500
        and half.config.n_layers == 2
        and f"{distilled['heldout_mlm_loss']:.3f}" in done.stdout
    )
    again, output = demo(tmp_path / "out", world / "text.txt")
    assert again.returncode == 0 and output.count("finished before, reused") == 3
    other, output = demo(tmp_path / "out", world / "text.txt", "--training.max_tokens", 3000)
    assert (
        other.returncode == 2
        and "holds another run (training.max_tokens" in output
        and "start over there with --fresh" in output
    )
