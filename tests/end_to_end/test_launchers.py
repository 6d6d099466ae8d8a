"""A job is one job, and SIGTERM to its outermost process saves it, whatever has started it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.test_faults import assert_same_weights
from tests.patience import communicate, kill_tree
from tests.start import ROOT, environment_of, free_port, wait_for

BIN = Path(sys.executable).parent
WAYS = {
    "launch.sh": ["./launch.sh"],
    "deepspeed": [BIN / "deepspeed", "--num_gpus", 2, "launch.sh"],
    "torchrun": [BIN / "torchrun", "--nproc-per-node", 2, "--master-port", free_port, "launch.sh"],
    "mpirun": ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "-n", 2, "./launch.sh"],
    "mpiexec": ["mpiexec.hydra", "-n", 2, "-genv", "MASTER_PORT", free_port, "./launch.sh"],
}
# mpirun kills its processes a second after it has passed a SIGTERM on; SIGUSR1 it passes on and no more.
REQUESTS = {"mpirun": signal.SIGUSR1}


def start(way: str, arguments: list, output: Path) -> subprocess.Popen:
    words = [word() if callable(word) else word for word in WAYS[way]]
    variables = {} if way == "launch.sh" or "mpi" not in way else {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
    return subprocess.Popen(
        [*map(str, words), *map(str, arguments), "--output", str(output)],
        cwd=ROOT,
        env=environment_of(DS_DISTILL_RANKS="2", DS_DISTILL_PYTHON=sys.executable, **variables),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(job: subprocess.Popen) -> None:
    out, errors = communicate(job)
    assert job.returncode == 0, errors[-3000:]
    # JSON, or what a terminal shows, which mpirun gives its processes
    assert out.count('"export"') + out.count("--format onnx-int8") == 1, "the first rank alone says what came out"


@pytest.fixture(scope="module")
def arguments(world, common):
    return [
        *("--teacher", world / "teacher", *common, "--training.dropout", 0.1, "--training.max_tokens", 256 * 200),
        *("--training.save_every", 1000, "--training.micro_batch_size", 2),
    ]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("launchers") / "undisturbed"
    finish(start("launch.sh", arguments, output))
    return output


@pytest.mark.promise("SIGTERM to the outermost process of a job, whatever has started it, loses nothing")
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "deepspeed" else pytest.mark.long) for way in WAYS]
)
def test_asked_to_end_at_its_outermost_process(undisturbed, arguments, tmp_path, way):
    if not shutil.which(WAYS[way][0], path=f"{ROOT}:{BIN}:/usr/bin"):
        pytest.skip(f"no {WAYS[way][0]} here (on Debian and Ubuntu: packages openmpi-bin and mpich)")
    output = tmp_path / "out"
    job = start(way, arguments, output)
    try:
        wait_for((output / "tensorboard").is_dir, job)
        job.send_signal(REQUESTS.get(way, signal.SIGTERM))
        # the ranks' own ends of the streams are closed when they have ended, which may be after their launcher
        _, errors = communicate(job)
        # a runner that a signal has ended cannot tell more; torchrun and mpirun have statuses of their own
        assert job.returncode == 75 if way in ("launch.sh", "mpiexec") else job.returncode != 0, errors[-3000:]
        assert errors.count("the same command resumes from") == 1, errors[-3000:]
        assert "Traceback" not in errors or way == "torchrun", "torchrun's own"
        (checkpoint,) = (output / "checkpoints").iterdir()
        assert 0 < int(checkpoint.name.removeprefix("step-")) < 200
        finish(start(way, arguments, output))
    finally:
        kill_tree(job.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert_same_weights(output, undisturbed)
    one, other = (json.loads((folder / "curves.json").read_text()) for folder in (output, undisturbed))
    assert one == other
