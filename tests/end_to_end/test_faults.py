"""Test what can happen to a long run.

This covers damaged checkpoints, a full disk, a second job, a loss that is not finite, ranks that
are lost or slow, and Ctrl-C.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ds_distill.utils.stop_signals import SIGNALS
from tests.patience import communicate
from tests.start import ROOT, Process, ds_distill, environment_of, start_ranks, wait_for


@pytest.fixture(scope="module")
def run(world, common):
    """A finished run with checkpoints at steps 3, 6, 9 and 10, and the command that made it."""
    output = world / "faultless"
    arguments = [
        "distill",
        "--teacher",
        world / "teacher",
        *common,
        "--training.save_every",
        3,
        "--training.save_total_limit",
        9,
    ]
    done = ds_distill(*arguments, "--output", output)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["checkpoint_seconds"] > 0 and summary["checkpoint_bytes"] > 1e5
    return output, arguments


def copy_run(run, folder, up_to: int):
    """Copy the run as it was after the checkpoint of step `up_to`."""
    shutil.copytree(run[0], folder)
    shutil.rmtree(folder / "export")
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > up_to:
            shutil.rmtree(path)
    return folder


def flip(file) -> None:
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))


def assert_same_weights(one, other) -> None:
    weights, expected = (load_file(folder / "export" / "model.safetensors") for folder in (one, other))
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)


def user_errors(done, *words: str) -> None:
    assert done.returncode not in (0, None), done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("ds-distill: ")]
    assert len(messages) == 1 and all(word in messages[0] for word in words), done.stderr[-2000:]


@pytest.mark.promise(
    "A damaged newest checkpoint is detected and set aside; the run resumes from the one before, bit-equal"
)
@pytest.mark.parametrize(
    "damage",
    ["flipped", "no manifest", *(pytest.param(name, marks=pytest.mark.long) for name in ("truncated", "missing"))],
)
def test_a_damaged_checkpoint_is_set_aside(run, tmp_path, damage):
    output = copy_run(run, tmp_path / "run", 6)
    newest = output / "checkpoints" / "step-000000006"
    file = newest / ("manifest.json" if damage == "no manifest" else "mp_rank_00_model_states.pt")
    if damage == "flipped":
        flip(file)
    elif damage == "truncated":
        os.truncate(file, file.stat().st_size - 100)
    else:
        file.unlink()
    done = ds_distill(*run[1], "--output", output)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        "step-000000006 is damaged" in done.stderr
        and file.name in done.stderr
        and "resuming from the one before" in done.stderr
    )
    assert (output / "checkpoints" / "damaged-step-000000006").is_dir()
    assert_same_weights(output, run[0])


@pytest.mark.promise("Where every checkpoint is damaged, the run says so and deletes nothing")
def test_no_sound_checkpoint_is_said(run, tmp_path):
    output = copy_run(run, tmp_path / "run", 3)
    flip(output / "checkpoints" / "step-000000003" / "mp_rank_00_model_states.pt")
    user_errors(ds_distill(*run[1], "--output", output), "every checkpoint is damaged", "another --output")
    assert (output / "checkpoints" / "damaged-step-000000003" / "mp_rank_00_model_states.pt").is_file()


@pytest.mark.promise(
    "A full disk, before or while a checkpoint is written: one sentence on one of the ranks, all of them end, "
    "the last checkpoint stays whole, and once space is free, the run resumes bit-equal"
)
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_the_last_checkpoint(run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    try:
        output = copy_run(run, disk / "run", 3)
        room = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(b"\0" * (room - 100_000))
        user_errors(ds_distill(*run[1], "--output", output), "disk is full", "step-000000003 is complete")
        ranks = start_ranks(2, "tests.end_to_end.full_disk_worker", *run[1], "--output", output)
        ended = [rank.wait() for rank in ranks]
        assert all(done.returncode == 2 and "Traceback" not in done.stderr for done in ended), ended
        (message,) = (line for done in ended for line in done.stderr.splitlines() if "ds-distill: " in line)
        assert "disk is full" in message and "resumes from the last checkpoint" in message
        assert [path.name for path in (output / "checkpoints").glob("step-*")] == ["step-000000003"]
        (disk / "filler").unlink()
        done = ds_distill(*run[1], "--output", output)
        assert done.returncode == 0, done.stderr[-3000:]
        assert_same_weights(output, run[0])
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the tokens are still mapped


@pytest.mark.promise("A second job on one output folder is refused")
def test_a_second_job_in_one_folder_is_refused(run, tmp_path):
    output = copy_run(run, tmp_path / "run", 3)
    with (output / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        user_errors(
            ds_distill(*run[1], "--output", output), "in use by another job (process", "wait until it has finished"
        )


@pytest.mark.promise(
    "A loss that is not finite: step, loss, rank, micro-batch and sequences named; after a set number the run ends"
)
def test_a_loss_that_is_not_finite_is_named_and_ends_the_run(world, common, tmp_path):
    done = ds_distill(
        *(
            "distill",
            "--teacher",
            world / "teacher",
            *common,
            "--output",
            tmp_path / "out",
            "--training.max_skipped",
            3,
        ),
        # each step multiplies the weights by about a hundred
        *("--training.max_tokens", 25600, "--training.learning_rate", 10, "--training.weight_decay", 10),
    )
    user_errors(done, "3 steps in a row were not finite", "Lower training.learning_rate", "checkpoints")
    assert re.search(
        r"step \d+: loss kl nan, mlm nan, cosine nan \(rank 0, micro-batch 1 of 2, sequences [\d, ]+, "
        r"and 1 more.*skipped, 1 in a row of at most 3",
        done.stderr,
    ), done.stderr


def two_ranks(*arguments, **environment):
    """Start a job of two ranks under DeepSpeed's launcher, as ./launch.sh does."""
    environment = environment_of(DS_DISTILL_RANKS="2", DS_DISTILL_PYTHON=sys.executable, **environment)
    return subprocess.Popen(
        [ROOT / "launch.sh", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def find_ranks(job) -> dict[int, int]:
    """Return the processes of a job by rank."""
    ranks = {}
    for number in subprocess.run(["pgrep", "-s", str(job.pid)], capture_output=True, text=True).stdout.split():
        try:
            with open(f"/proc/{number}/environ") as file:
                variables = dict(entry.split("=", 1) for entry in file.read().split("\0") if "=" in entry)
        except OSError:
            continue
        if "RANK" in variables:
            ranks.setdefault(int(variables["RANK"]), int(number))
    return ranks


class Endless:
    """A job of two ranks under the launcher that would take hours."""

    def __init__(self, world, common, output, **environment):
        self.checkpoints = output / "checkpoints"
        self.arguments = [
            "--teacher",
            world / "teacher",
            *common,
            "--output",
            output,
            "--training.max_tokens",
            10**7,
            "--training.save_every",
            5,
        ]
        self.job = two_ranks(*self.arguments, **environment)
        wait_for(lambda: self.newest >= 5, self.job)
        self.ranks = find_ranks(self.job)
        assert set(self.ranks) == {0, 1}

    @property
    def newest(self) -> int:
        return max((int(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*")), default=0)

    def further(self) -> None:
        before = self.newest
        wait_for(lambda: self.newest > before + 5, self.job)

    def end(self) -> list[str]:
        """Wait until the job ends by itself and leaves nothing behind; return its sentences."""
        began = time.monotonic()
        _, errors = communicate(self.job)
        self.seconds_to_end = round(time.monotonic() - began)
        assert self.job.returncode != 0
        assert "Traceback" not in errors and "frame #" not in errors, errors[-3000:]
        assert not find_ranks(self.job), "an orphan"
        return [line for line in errors.splitlines() if "ds-distill: " in line]


@pytest.fixture
def endless(world, common, tmp_path):
    jobs = []

    def start(**environment) -> Endless:
        jobs.append(Endless(world, common, tmp_path / "out", **environment))
        return jobs[-1]

    yield start
    for each in jobs:
        if each.job.poll() is None:
            os.killpg(each.job.pid, signal.SIGKILL)


@pytest.mark.promise("A slow rank, and a clock that jumps an hour forth and back, are tolerated")
@pytest.mark.long
@pytest.mark.promise(
    "A rank that is killed ends the job within a minute: one sentence, no orphan, the last checkpoint whole"
)
def test_slow_ranks_and_jumping_clocks_are_borne_and_a_killed_rank_is_not(endless, tmp_path, record_property):
    library, jumped = tmp_path / "clock.so", tmp_path / "jumped"
    compiled = shutil.which("cc") and subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", library, ROOT / "tests/end_to_end/clock.c", "-ldl"]
    )
    one = endless(**({"LD_PRELOAD": str(library), "CLOCK_JUMPED": str(jumped)} if compiled else {}))
    os.kill(one.ranks[1], signal.SIGSTOP)
    time.sleep(8)
    os.kill(one.ranks[1], signal.SIGCONT)
    one.further()
    for change in (jumped.touch, jumped.unlink) if compiled else ():
        change()
        one.further()
        record_property("clock jumps", 1)
    before = one.newest
    os.kill(one.ranks[1], signal.SIGKILL)
    assert len(one.end()) == 1
    record_property("seconds", one.seconds_to_end)
    assert one.newest >= before


@pytest.mark.promise("Ctrl-C in the launcher's terminal: saved, one sentence, no orphan")
def test_ctrl_c(endless):
    one = endless()
    os.killpg(one.job.pid, signal.SIGINT)  # like a terminal's Ctrl-C, it reaches the launcher and the ranks
    (message,) = one.end()
    step = int(re.search(r"stopped at step (\d+) of", message)[1])
    assert one.newest == step and "the same command resumes" in message


@pytest.mark.long
@pytest.mark.promise("Ctrl-C, SIGTERM and SIGUSR1 to every process while torch.compile runs: saved, one sentence")
def test_signals_while_compilers_run(run, tmp_path):
    output, cache = tmp_path / "run", tmp_path / "cache"
    one = Process(
        *("ds_distill", *run[1], "--output", output, "--training.compile", "on"), TORCHINDUCTOR_CACHE_DIR=str(cache)
    )

    def compiles() -> bool:
        names = [process.name() for process in psutil.Process(one.pid).children(recursive=True)]
        return (output / "tensorboard").is_dir() and "cc1plus" in names

    wait_for(compiles, one)
    for number in SIGNALS:
        os.killpg(one.pid, number)
    done = one.wait()
    assert done.returncode == 75 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "stopped at step" in done.stderr


@pytest.mark.promise("A resume with another precision, or between stage 0 and another, is refused with the remedy")
def test_what_no_conversion_bridges_is_refused(run, tmp_path):
    output = copy_run(run, tmp_path / "run", 6)
    user_errors(
        ds_distill(*run[1], "--output", output, "--training.deepspeed", "ds_configs/deepspeed/zero2.json"),
        "stage 0",
        "training.deepspeed",
    )
    user_errors(
        ds_distill(*run[1], "--output", output, "--training.precision", "bf16"), "training.precision was", "is bf16"
    )
    again = ds_distill(*run[1], "--output", output)
    assert again.returncode == 0, again.stderr[-3000:]


@pytest.mark.promise("Hosts that do not see one output folder, or have other tokens or another recipe, are named")
@pytest.mark.parametrize(
    "differs, words",
    [
        ("--tokens", ["rank 1 has different tokens there than rank 0"]),
        ("--losses.kl", ["rank 1 was started with another run", "losses.kl was 5.0, is 3.0"]),
        pytest.param("--output", ["file system"], marks=pytest.mark.long),
    ],
)
def test_ranks_that_do_not_share(world, common, run, tmp_path, differs, words):
    other = ds_distill(
        "prepare",
        "--tokenizer",
        world / "teacher",
        "--corpus",
        world / "text.txt",
        "--output",
        tmp_path / "other",
        "--data.sequence_length",
        32,
        "--data.heldout_fraction",
        0.1,
    )
    assert other.returncode == 0, other.stderr[-3000:]
    same = {"--tokens": run[0] / "tokens", "--output": tmp_path / "out", "--losses.kl": 5}
    others = {"--tokens": tmp_path / "other", "--output": tmp_path / "other", "--losses.kl": 3}

    def rank_arguments(rank: int) -> list:
        return [
            word for key, value in same.items() for word in (key, others[key] if rank and key == differs else value)
        ]

    ranks = start_ranks(
        2, "ds_distill", "distill", "--teacher", world / "teacher", *common[2:], rank_arguments=rank_arguments
    )
    results = [rank.wait() for rank in ranks]
    stderr = "".join(done.stderr for done in results)  # one sentence, or two since the paths differ here too
    assert (
        all(done.returncode == 2 for done in results)
        and "Traceback" not in stderr
        and all(word in stderr for word in words)
    ), stderr[-2000:]
