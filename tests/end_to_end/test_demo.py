"""Test the main job, from text to the table: with a teacher of its own on several ranks, and with the shipped one."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForMaskedLM

from ds_distill.demo.comparison import PROMPTS
from ds_distill.demo.run import SHIPPED_TEACHER
from tests import patience
from tests.start import ROOT, ds_distill, start_ranks


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
        "demo",
        "--from-scratch",
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


@pytest.mark.long
def test_the_main_job_on_three_ranks(world, tmp_path):
    done, output = demo(tmp_path / "out", world / "text.txt")
    assert done.returncode == 0, output[-3000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["model"] for row in summary["rows"]] == [
        "word counts",
        "teacher",
        "student at start",
        "student, distilled",
        "student, no teacher",
    ]
    assert "micro-batch: 3 sequences, not 8: a rank's share of the global batch is 2 or 3" in output
    distilled, half = summary["rows"][3], AutoModelForMaskedLM.from_pretrained(summary["export"])
    assert (
        distilled["tokens"] >= 1500 and half.config.n_layers == 2 and f"{distilled['mask_loss']:.2f} ± " in done.stdout
    )
    again, output = demo(tmp_path / "out", world / "text.txt")
    assert again.returncode == 0 and output.count("finished before, reused") == 3
    other, output = demo(tmp_path / "out", world / "text.txt", "--training.max_tokens", 3000)
    assert (
        other.returncode == 2
        and "holds another run (training.max_tokens" in output
        and "start over there with --fresh" in output
    )


def plain_path() -> str:
    """Return the PATH of somebody who has only typed ./launch.sh, which activates no environment."""
    folders = os.environ["PATH"].split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if not Path(folder, "ds-distill").exists())


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The demo on a little of this machine's documentation: its folder, and what it printed."""
    output = tmp_path_factory.mktemp("shipped") / "out"
    sizes = ["--corpus_megabytes", 0.4, "--training.max_tokens", 4096]
    done = ds_distill("demo", "--output", output, *sizes, PATH=plain_path())
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done.stdout


def test_what_the_demo_prints_is_in_its_folder(shipped):
    output, printed = shipped
    summary = json.loads((output / "summary.json").read_text())
    counts, teacher, start, distilled, plain = summary["rows"]
    assert teacher["kept"] == 1 and counts["kept"] < 0.5 < min(start["kept"], distilled["kept"], plain["kept"])
    assert 0.4 < distilled["parameters"] / teacher["parameters"] < 0.7
    assert teacher["mask_accuracy"] - counts["mask_accuracy"] > 10 * teacher["mask_accuracy_se"]
    assert len({row["mask_count"] for row in summary["rows"]}) == 1 and teacher["mask_count"] > 100
    lead = distilled["mask_accuracy"] - plain["mask_accuracy"]
    assert summary["distilled_ahead_accuracy"] == pytest.approx(lead)
    assert f"{100 * abs(lead):.1f} ± {100 * summary['distilled_ahead_accuracy_se']:.1f} points" in printed
    for row in summary["rows"]:
        assert f"{row['mask_accuracy']:.1%} ± {100 * row['mask_accuracy_se']:.1f}" in printed
    assert [row["prompt"] for row in summary["prompts"]] == list(PROMPTS)
    assert all(f"{row['teacher'][0][0]} {row['teacher'][0][1]:.0%}" in printed for row in summary["prompts"])


def test_the_students_have_not_read_the_heldout_text(shipped):
    train, heldout = (
        set((shipped[0] / "text" / f"{part}.txt").read_text().split("\n")) - {""} for part in ("train", "heldout")
    )
    assert heldout and not heldout & train


def test_the_shipped_teacher_is_small_and_half():
    assert (SHIPPED_TEACHER / "model.safetensors").stat().st_size <= 10e6
    with safe_open(SHIPPED_TEACHER / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}


@pytest.mark.parametrize("in_a_shell", ["python", pytest.param("all", marks=pytest.mark.long)])
def test_the_next_commands_work_as_printed(shipped, in_a_shell):
    """The quick test starts this program itself from a process that has its libraries."""
    _, printed = shipped
    script = re.search(r"^Next:$(.*?)^\{", printed, re.DOTALL | re.MULTILINE)[1]
    if in_a_shell == "python":
        lines = script.replace("\\\n", "").splitlines()
        ours = [shlex.split(line) for line in lines if line.startswith("ds-distill ")]
        assert [words[1] for words in ours] == ["export", "estimate"]
        for _, *words in ours:
            done = ds_distill(*words)
            assert done.returncode == 0, f"{words}\n{done.stderr[-3000:]}"
        others = [line for line in lines if not line.startswith("ds-distill ")]
        script = "\n".join([*others, "command -v ds-distill"])
    environment = os.environ | {"PATH": plain_path(), "HF_HUB_OFFLINE": "1"}
    done = patience.run(["bash", "-euc", script], cwd=ROOT, env=environment)
    assert done.returncode == 0, f"{script}\n{done.stderr[-3000:]}"
    assert "token_str" in done.stdout
