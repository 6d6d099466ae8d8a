"""Variables that another process left in the environment are understood or named, never obeyed in silence."""

import json
import os
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_distill.cli import main
from ds_distill.cli.commands import COMMANDS
from ds_distill.distributed import launch_environment as launch
from ds_distill.distributed.process_group import _report_long_wait
from ds_distill.utils.console import is_first
from ds_distill.utils.errors import UserError
from tests.start import ds_distill
from tests.streams import ThreadStream

NAMES = (
    *launch.RANK_VARIABLES,
    *launch.MPI_VARIABLES,
    *launch.LAUNCHER_VARIABLES,
    "SLURM_PROCID",
    "SLURM_NTASKS",
)
VALUES = st.sampled_from(["", "0", "1", "2", "7", "-1", "eight", "²", "tcp://10.0.0.1:29500", "10.0.0.1"])


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No test leaves variables behind or finds any."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def put(variables: dict[str, str]) -> None:
    for name in NAMES:
        os.environ.pop(name, None)
    os.environ.update(variables)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(command=st.sampled_from(sorted(COMMANDS)), variables=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
def test_any_environment_is_understood_or_named(capsys, command, variables):
    put(variables)
    capsys.readouterr()
    try:
        works = launch.normalize_environment(command)
    except UserError as error:
        assert command in launch.MULTI_RANK_COMMANDS and is_first(), "a mistake is said by the process that finds it"
        assert any(name in str(error) for name in NAMES) and "\n" not in str(error)
        return
    stderr, rank, world = capsys.readouterr().err, variables.get("RANK", ""), variables.get("WORLD_SIZE", "")
    if command not in launch.MULTI_RANK_COMMANDS:
        assert not set(os.environ) & {*launch.RANK_VARIABLES, *launch.MPI_VARIABLES}
        assert works or any(name in variables for name in (*launch.LAUNCHER_VARIABLES, *launch.MPI_VARIABLES)), (
            "only what a launcher started may leave the work to the first rank"
        )
        assert not works or bool(stderr) == (rank not in ("", "0") or world not in ("", "1"))
    else:
        assert works and 0 <= int(os.environ["RANK"]) < int(os.environ["WORLD_SIZE"]) == launch.world_size()
        assert os.environ["MASTER_ADDR"] and int(os.environ["LOCAL_RANK"]) >= 0
        assert launch.world_size() == 1 or os.environ["MASTER_PORT"].isdecimal()
        assert launch.world_size() > 1 or os.environ["MASTER_ADDR"] == "127.0.0.1", "not the address of another job"


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"WORLD_SIZE": "8"}, "WORLD_SIZE = 8 in the environment, but no RANK and no MASTER_ADDR"),
        ({"WORLD_SIZE": "8", "RANK": "0"}, "WORLD_SIZE = 8 in the environment, but no MASTER_ADDR"),
        ({"RANK": "1"}, "RANK = 1 in the environment, but no WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK = 1 in the environment, but WORLD_SIZE = 1"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
            "RANK = 2 in the environment: WORLD_SIZE = 2 has ranks 0 to 1",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = two in the environment: must be a whole number"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "tcp://10.0.0.1:80"},
            "MASTER_PORT = tcp://10.0.0.1:80 in the environment",
        ),
    ],
)
def test_what_describes_no_rank_ends_a_distillation_at_its_start(tmp_path, capsys, variables, words):
    put(variables)
    assert main(["distill", "--teacher", "T", "--corpus", "x", "--output", str(tmp_path / "out")]) == 2
    messages = capsys.readouterr().err.splitlines()
    assert (
        len(messages) == 1
        and messages[0].startswith(f"ds-distill: {words}")
        and "env -u RANK -u WORLD_SIZE" in messages[0]
    )


def test_a_lone_process_of_a_pod_is_itself_without_a_word(capsys):
    put(
        {
            "WORLD_SIZE": "1",
            "RANK": "0",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "pod-0.of-another-job",
            "MASTER_PORT": "tcp://10.0.0.1:80",
        }
    )
    assert launch.normalize_environment("finetune") and launch.normalize_environment("distill")
    assert capsys.readouterr().err == "" and os.environ["MASTER_ADDR"] == "127.0.0.1"


def test_only_the_first_of_launched_ranks_does_the_work_of_one(capsys):
    for rank, works in (("0", True), ("3", False)):
        put({"RANK": rank, "WORLD_SIZE": "4", "LOCAL_RANK": rank, "CROSS_RANK": "0", "MASTER_ADDR": "127.0.0.1"})
        assert launch.normalize_environment("export") is works
        assert ("ignored" in capsys.readouterr().err) is works


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1"},
        {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"},
    ],
)
def test_the_work_of_one_process_is_done_and_its_result_printed(tmp_path, variables):
    (tmp_path / "text.txt").write_text("\n\n".join(["the small model reads what a large one wrote"] * 20))
    from ds_distill.data.tokenizer import train_wordpiece

    train_wordpiece(["the small model reads what a large one wrote"] * 3, 256, tmp_path / "tokenizer")
    done = ds_distill(
        "prepare",
        "--tokenizer",
        tmp_path / "tokenizer",
        "--corpus",
        tmp_path / "text.txt",
        "--output",
        tmp_path / "tokens",
        "--data.sequence_length",
        32,
        "--data.workers",
        1,
        **variables,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        json.loads(done.stdout.splitlines()[-1])["documents"]["train"] > 0
        and (tmp_path / "tokens" / "summary.json").is_file()
    )
    assert "RANK = 1" in done.stderr and "prepare runs in a single process" in done.stderr


def test_a_wait_for_other_ranks_is_said(monkeypatch):
    put({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    stderr = ThreadStream()
    monkeypatch.setattr(sys, "stderr", stderr)
    with _report_long_wait(0.0):
        said = stderr.wait()
    assert said.startswith("rank 0 of 2 is waiting for the other ranks at 10.0.0.1:29500")
    assert said.count("\n") == 1
    with _report_long_wait(3600):
        pass
    assert stderr.getvalue() == said


@pytest.mark.parametrize("command", ["distill", "finetune"])
def test_an_accelerator_that_deepspeed_does_not_know_is_named(monkeypatch, command):
    monkeypatch.setenv("DS_ACCELERATOR", "foo")
    with pytest.raises(UserError, match="DS_ACCELERATOR = foo in the environment: must be one of cuda, cpu"):
        launch.normalize_environment(command)


def test_variables_of_mpirun_and_accelerate_reach_no_library(monkeypatch, capsys):
    put({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1", "RANK": "0", "WORLD_SIZE": "1"})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert launch.normalize_environment("distill") and not set(os.environ) & set(launch.MPI_VARIABLES)
    assert launch.normalize_environment("finetune") and "ACCELERATE_USE_DEEPSPEED" not in os.environ
    assert capsys.readouterr().err == ""


def test_a_port_that_is_none_is_named():
    put({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"})
    with pytest.raises(UserError, match="MASTER_PORT = 99999 in the environment: must be between 1 and 65535"):
        launch.normalize_environment("distill")


def test_a_rank_takes_its_gpu(monkeypatch):
    for name in launch.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert launch.gpu_index(3, 8) == 3
    assert launch.gpu_index(3, 1) == 0, "srun --gpus-per-task=1 shows each process its own GPU alone"
    with pytest.raises(UserError, match="only 2 GPUs are visible"):
        launch.gpu_index(3, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match="only 1 GPUs are visible"):
        launch.gpu_index(1, 1)


def test_gpus_that_are_left_idle_are_told(monkeypatch):
    for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch.idle_gpus(1) is None
    assert launch.idle_gpus(8).startswith("1 of the 8 GPUs of this machine is used; ./launch.sh starts")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert launch.idle_gpus(8) is None
