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
HOSTFILE = object()
WAYS = {
    "launch.sh": ["./launch.sh"],
    "deepspeed": [BIN / "deepspeed", "--num_gpus", 2, "--master_port", free_port, "launch.sh"],
    "deepspeed over mpirun": [
        *(BIN / "deepspeed", "--hostfile", HOSTFILE, "--force_multi", "--no_ssh_check"),
        *("--master_addr", "127.0.0.1", "--master_port", free_port, "--launcher", "openmpi"),
        "launch.sh",
    ],
    "torchrun": [BIN / "torchrun", "--nproc-per-node", 2, "--master-port", free_port, "launch.sh"],
    "mpirun": ["mpirun.openmpi", "--oversubscribe", "-n", 2, "./launch.sh"],
    "mpiexec": ["mpiexec.hydra", "-n", 2, "-genv", "MASTER_PORT", free_port, "./launch.sh"],
}
# mpirun kills its processes a second after it has passed a SIGTERM on; SIGUSR1 it passes on and no more.
REQUESTS = {"mpirun": signal.SIGUSR1}


def start(way: str, arguments: list, output: Path) -> subprocess.Popen:
    hostfile = output.with_name("hostfile")
    hostfile.write_text("localhost slots=2\n")
    words = [hostfile if word is HOSTFILE else word() if callable(word) else word for word in WAYS[way]]
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.Popen(
        [*map(str, words), *map(str, arguments), "--output", str(output)],
        cwd=ROOT,
        env=environment_of(DS_DISTILL_RANKS="2", DS_DISTILL_PYTHON=sys.executable, **as_root),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(job: subprocess.Popen, *roots: int) -> None:
    """Wait for a job to end well; `roots` are further processes that have started its own."""
    out, errors = communicate(job, *roots)
    assert job.returncode == 0, errors[-3000:]
    # JSON, or what a terminal shows, which mpirun gives its processes
    assert out.count('"export"') + out.count("--format onnx-int8") == 1, "the first rank alone says what came out"


def assert_resumed_alike(output: Path, undisturbed: Path) -> None:
    """Assert that a run was saved once before its end, and has ended as one that was never asked to."""
    assert len(list((output / "checkpoints").iterdir())) == 2, "that of the request, and the last"
    assert_same_weights(output, undisturbed)
    one, other = (json.loads((folder / "curves.json").read_text()) for folder in (output, undisturbed))
    assert one == other


@pytest.fixture(scope="module")
def arguments(world, common):
    return [
        *("--teacher", world / "teacher", *common, "--training.dropout", 0.1),
        *("--training.save_every", 1000, "--training.micro_batch_size", 2),
        *("--training.max_tokens", 256 * 200),
    ]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("launchers") / "undisturbed"
    finish(start("launch.sh", arguments, output))
    return output


@pytest.mark.promise("SIGTERM to the outermost process of a job, whatever has started it, loses nothing")
@pytest.mark.parametrize(
    "way, resumes", [("deepspeed", False), *(pytest.param(way, True, marks=pytest.mark.long) for way in WAYS)]
)
def test_asked_to_end_at_its_outermost_process(request, arguments, tmp_path, way, resumes):
    if not shutil.which(WAYS[way][0], path=f"{ROOT}:{BIN}:/usr/bin"):
        pytest.skip(f"no {WAYS[way][0]} here (on Debian and Ubuntu: packages openmpi-bin and mpich)")
    output = tmp_path / "out"
    steps = 200 if resumes else 100_000  # a run that need not end cannot end before it is asked to
    arguments = [*arguments[:-1], 256 * steps]
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
        assert f"stopped at step {int(checkpoint.name.removeprefix('step-')):,} of {steps:,}" in errors
        if resumes:
            finish(start(way, arguments, output))
            assert_resumed_alike(output, request.getfixturevalue("undisturbed"))
    finally:
        kill_tree(job.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.promise(
    "examples/slurm.sbatch: scancel --signal=TERM saves, Slurm requeues, and the run resumes, bit-equal"
)
def test_the_example_is_requeued_and_resumes(slurm, undisturbed, arguments, tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    job = slurm.ask(
        *("sbatch", "--parsable", "--gpus-per-node", 2, "--output", log, "examples/slurm.sbatch"),
        *(*arguments, "--output", output),
    )
    assert job.isdecimal()
    wait_for((output / "tensorboard").is_dir, *slurm.daemons)
    slurm.ask("scancel", "--signal=TERM", job)
    wait_for(lambda: slurm.state(job) == "PENDING", *slurm.daemons, pause=0.2)
    text = log.read_text()
    assert text.count("the same command resumes from") == 1 and "Traceback" not in text, text[-3000:]
    slurm.ask(
        "scontrol", "update", f"JobId={job}", "StartTime=now"
    )  # Slurm waits two minutes before it starts one again
    wait_for(lambda: slurm.state(job) in ("COMPLETED", ""), *slurm.daemons, pause=0.2)
    assert log.read_text().count('"export"') == 1, log.read_text()[-3000:]
    assert_resumed_alike(output, undisturbed)


@pytest.mark.long
@pytest.mark.promise("SIGTERM to the outermost process of a job, whatever has started it, loses nothing")
@pytest.mark.parametrize("launcher", ["srun", "deepspeed"])
def test_tasks_of_srun_are_one_job(slurm, undisturbed, arguments, tmp_path, launcher):
    """With two tasks per node each task is a rank; DeepSpeed's own way to Slurm starts its ranks as such tasks."""
    output, hostfile = tmp_path / "out", tmp_path / "hostfile"
    hostfile.write_text("n0 slots=1\nn1 slots=1\n")
    words = {
        "srun": ["srun", "-N", 1, "-n", 2, sys.executable, "-m", "ds_distill", "run"],
        "deepspeed": [
            *(Path(sys.executable).parent / "deepspeed", "--hostfile", hostfile, "--no_ssh_check"),
            *("--master_addr", "127.0.0.1", "--launcher", "slurm", "launch.sh"),
        ],
    }[launcher]
    job = slurm.start(*words, *arguments, "--output", output)
    roots = [daemon.pid for daemon in slurm.daemons]
    wait_for((output / "tensorboard").is_dir, job)
    if launcher == "srun":
        job.send_signal(signal.SIGUSR1)  # SIGTERM to srun itself kills the tasks; this one it passes on
    else:  # the command deepspeed passes nothing on, and Slurm asks the tasks themselves
        slurm.ask("scancel", "--signal=TERM", slurm.ask("squeue", "-h", "-o", "%A"))
    _, errors = communicate(job, *roots)
    assert job.returncode != 0 and errors.count("the same command resumes from") == 1, errors[-3000:]
    finish(slurm.start(*words, *arguments, "--output", output), *roots)
    assert_resumed_alike(output, undisturbed)
