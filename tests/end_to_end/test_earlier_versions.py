"""Runs that an earlier version of this code has made are resumed.

runs_of_earlier_versions.tar.xz has a teacher of each family that was supported on 2026-11-29, and a run of it, 8 of 16
steps, made by the code before ModernBERT (commit 26c11a5), which ended these runs at the losses below.
"""

import json
import tarfile
from pathlib import Path

import pytest

from tests.start import ds_distill

ARCHIVE = Path(__file__).with_name("runs_of_earlier_versions.tar.xz")
LOSSES = {"bert": 23.689036, "distilbert": 31.233438, "roberta": 25.275936, "xlm-roberta": 22.212592}


@pytest.mark.promise("Checkpoints of earlier versions are resumed, and end where those would have ended")
@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=() if family == "bert" else pytest.mark.long) for family in LOSSES]
)
def test_a_run_of_an_earlier_version_is_resumed(tmp_path, family):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / family
    options = {
        "teacher": folder / "teacher",
        "tokens": folder / "run" / "tokens",
        "output": folder / "run",
        "data.sequence_length": 32,
        "data.heldout_fraction": 0.1,
        "training.global_batch_size": 8,
        "training.micro_batch_size": 4,
        "training.eval_every": 0,
        "training.precision": "fp32",
        "training.device": "cpu",
        "training.deepspeed": "ds_configs/deepspeed/zero1.json",
        "training.report_to": "[]",
        "training.max_tokens": 4096,
    }
    done = ds_distill("distill", *(word for key, value in options.items() for word in (f"--{key}", value)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming at step 8" in " ".join(done.stderr.split()), done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["steps"] == 16 and summary["loss"] == pytest.approx(LOSSES[family], rel=1e-4)
