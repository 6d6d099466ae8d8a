"""Test torchrun: restarts after a lost rank, on as many ranks or fewer, and jobs of one rank."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.patience import communicate, kill_tree, processes_below
from tests.start import ROOT, environment_of, free_port, wait_for

STEPS = 60


class Agent(subprocess.Popen):
    """A process of torchrun that starts two ranks."""

    def __init__(self, *arguments):
        super().__init__(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, arguments)],
            cwd=ROOT,
            env=environment_of(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def ranks(self) -> dict[int, psutil.Process]:
        """Return its ranks' processes by rank."""
        ranks = {}
        for process in processes_below([self.pid]):
            environment = process.environ()
            if process.pid != self.pid and "RANK" in environment:
                ranks.setdefault(int(environment["RANK"]), process)
        return ranks


@pytest.fixture
def distillation(world, common, tmp_path):
    arguments = ["-m", "ds_distill", "distill", "--teacher", world / "teacher", *common]
    arguments += ["--training.dropout", 0, "--training.max_tokens", 256 * STEPS, "--training.save_every", 5]
    return [*arguments, "--output", tmp_path / "out"]


def checkpoints(output: Path) -> list[Path]:
    return list(output.glob("checkpoints/step-*"))


def finish(agent: Agent) -> str:
    _, errors = communicate(agent)
    assert agent.returncode == 0, errors[-4000:]
    assert "resuming at step" in errors and "no heartbeat" not in errors
    return errors


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in json.loads((output / "curves.json").read_text())["history"]]


@pytest.mark.long
@pytest.mark.promise("torchrun starts a job anew after a lost rank, and it resumes from its checkpoint, bit-equal")
@pytest.mark.parametrize("rendezvous", ["static", "standalone"])
def test_a_restart_resumes(distillation, tmp_path, rendezvous):
    where = ["--standalone"] if rendezvous == "standalone" else ["--master-port", free_port()]
    agent = Agent("--max-restarts", 2, *where, *distillation)
    try:
        wait_for(lambda: checkpoints(tmp_path / "out"), agent)
        agent.ranks()[1].kill()
        finish(agent)
        whole = Agent("--master-port", free_port(), *distillation[:-1], tmp_path / "whole")
        _, errors = communicate(whole)
        assert whole.returncode == 0, errors[-4000:]
        assert losses(tmp_path / "out") == losses(tmp_path / "whole") and len(losses(tmp_path / "out")) == STEPS
    finally:
        kill_tree(agent.pid)


@pytest.mark.long
@pytest.mark.promise("torchrun starts a job anew after a lost rank, and it resumes from its checkpoint, bit-equal")
def test_a_job_continues_with_the_ranks_that_are_left(distillation, tmp_path):
    """Two agents of two ranks each; one is lost with its ranks, as a node is."""
    port = free_port()
    where = ["--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    where += ["--rdzv-conf", "join_timeout=600,last_call_timeout=60", "--local-addr", "127.0.0.1", "--max-restarts", 3]
    agents = [Agent(*where, *distillation) for _ in range(2)]
    try:
        wait_for(lambda: checkpoints(tmp_path / "out"), *agents)
        # the agents meet at the one that has taken the port, without which neither can go on
        listens = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
        agents.sort(key=lambda agent: agent.pid not in listens)
        kill_tree(agents[1].pid)
        errors = finish(agents[0])
        assert "2 ranks" in errors.partition("resuming at step")[0]
        assert len(losses(tmp_path / "out")) == STEPS
    finally:
        for agent in agents:
            kill_tree(agent.pid)


@pytest.mark.long
def test_one_rank_meets_nobody():
    """The Python interface under torchrun with one process: nobody listens at a port of its own."""
    program = "from ds_distill.distributed.process_group import start_distributed; print(start_distributed())"
    environment = environment_of(
        RANK="0",
        WORLD_SIZE="1",
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RUN_ID="none",
    )
    job = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=-1,
        stderr=-1,
        start_new_session=True,
    )
    out, errors = communicate(job)
    assert out.strip().endswith("(0, 1)"), errors[-3000:]
