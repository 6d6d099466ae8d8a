"""export, evaluate, prepare and env, as a user runs them; a job that is killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from tests.end_to_end.conftest import ROOT, ds_distill, environment_of


def last_line(done) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def run(world, common):
    output = world / "a run"
    last_line(ds_distill("distill", "--teacher", world / "teacher", *common, "--output", output, "--training.checkpoint_every", 4))
    return output


def test_export_of_any_checkpoint(run, tmp_path):
    summary = last_line(ds_distill("export", "--run", run, "--output", tmp_path / "last"))
    assert summary["step"] == 10
    mine, other = load_file(tmp_path / "last" / "model.safetensors"), load_file(run / "export" / "model.safetensors")
    assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    last_line(ds_distill("export", "--run", run, "--step", 8, "--output", tmp_path / "eight"))
    earlier = load_file(tmp_path / "eight" / "model.safetensors")
    assert any(not torch.equal(earlier[name], mine[name]) for name in mine)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "eight").config.n_layers == 2
    refused = ds_distill("export", "--run", run, "--step", 7, "--output", tmp_path / "seven")
    assert refused.returncode == 2 and "checkpoints of steps 8, 10" in refused.stderr


def test_evaluate_orders_models(run, world, tmp_path):
    done = ds_distill("evaluate", "--model", world / "teacher", run / "export", "--untrained", "--tokens", run / "tokens", "--output", tmp_path)
    rows = last_line(done)["models"]
    assert [row["model"] for row in rows][0] == str(run / "export"), "a trained student beats its untrained teacher"
    losses = [row["heldout_mlm_loss"] for row in rows]
    assert len(rows) == 3 and losses == sorted(losses)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"models": rows}
    assert "| model" in done.stdout


def test_prepare_says_what_it_made(world, tmp_path):
    done = ds_distill("prepare", "--tokenizer", world / "teacher", "--corpus", world / "text.txt", "--output", tmp_path / "tokens")
    summary = last_line(done)
    assert summary["blocks"]["train"] > 0 and summary == json.loads((tmp_path / "tokens" / "summary.json").read_text())


def test_env_needs_nothing(tmp_path):
    """No GPU, no compiler, no network: it says so."""
    summary = last_line(ds_distill("env", PATH="/nonexistent", CXX="none"))
    kernels = {row["kernel"]: row for row in summary["kernels"]}
    assert not kernels["DeepSpeed FusedAdam"]["active"] and "compiler" in kernels["DeepSpeed FusedAdam"]["why"]
    assert kernels["torch fused AdamW"]["active"]
    assert summary["versions"]["deepspeed"]


def test_without_a_compiler_torch_takes_over(world, common, tmp_path):
    done = ds_distill("distill", "--teacher", world / "teacher", *common, "--output", tmp_path / "out", PATH="/nonexistent", CXX="none")
    assert last_line(done)["steps"] == 10
    assert done.stderr.count("torch's fused AdamW") == 1 and "no C++ compiler" in done.stderr
    done = ds_distill("distill", "--teacher", world / "teacher", *common, "--output", tmp_path / "two", "--training.optimizer", "deepspeed",
                      PATH="/nonexistent", CXX="none")  # fmt: skip
    assert done.returncode == 2 and "no C++ compiler" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_restarted_is_bit_equal(world, common, run, tmp_path, blow):
    arguments = ["distill", "--teacher", world / "teacher", *common, "--output", tmp_path / "out", "--training.checkpoint_every", 1]
    job = subprocess.Popen([sys.executable, "-m", "ds_distill", *map(str, arguments)], cwd=ROOT, env=environment_of(), stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "out" / "checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints.is_dir() and list(checkpoints.glob("step-*"))):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(job.pid, blow)
    code = job.wait(60)
    assert code == (-signal.SIGKILL if blow == signal.SIGKILL else 2) and not (tmp_path / "out" / "export").exists()
    last_line(ds_distill(*arguments))
    mine, other = load_file(tmp_path / "out" / "export" / "model.safetensors"), load_file(run / "export" / "model.safetensors")
    assert all(torch.equal(mine[name], other[name]) for name in mine)
