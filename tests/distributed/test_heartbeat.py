"""A rank that is gone or stopped ends the job, with one sentence; one that is slow does not."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.distributed.launch import ROOT


@pytest.fixture
def ranks():
    """Three living ranks, started with (patience, life)."""
    running = []

    def start(patience: float, life: float) -> list[subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
        for rank in range(3):
            command = [sys.executable, "-m", "tests.distributed.heartbeat_worker", str(patience), str(life)]
            environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        for rank in running:
            assert rank.stdout.readline().startswith("alive")
        return running

    yield start
    for rank in running:
        rank.kill()


def sentences(ranks: list[subprocess.Popen], timeout: float) -> list[str]:
    deadline = time.monotonic() + timeout
    errors = [rank.communicate(timeout=deadline - time.monotonic())[1] for rank in ranks]
    return [line for text in errors for line in text.splitlines() if line.startswith("ds-distill: ")]


def test_a_stopped_rank_is_named_once_and_all_end(ranks):
    zero, one, two = ranks(5, 600)
    os.kill(two.pid, signal.SIGSTOP)
    said = sentences([zero, one], 60)
    assert len(said) == 1 and "rank 2" in said[0] and "no sign of life for 5 s" in said[0] and "last checkpoint" in said[0]
    assert zero.returncode == one.returncode == 3


def test_the_loss_of_the_first_rank_is_noticed_without_its_store(ranks):
    zero, one, two = ranks(5, 600)
    os.kill(zero.pid, signal.SIGSTOP)
    said = sentences([one, two], 60)
    assert len(said) == 1 and "no answer from the first rank" in said[0]
    assert one.returncode == two.returncode == 3


def test_a_slow_rank_and_a_proper_end_are_no_loss(ranks):
    every = ranks(9, 9)
    os.kill(every[1].pid, signal.SIGSTOP)
    time.sleep(6)
    os.kill(every[1].pid, signal.SIGCONT)
    assert not sentences(every, 120)
    assert [rank.returncode for rank in every] == [0, 0, 0]
