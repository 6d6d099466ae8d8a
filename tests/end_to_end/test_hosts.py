"""Test two hosts: network namespaces that are joined by a wire and have an sshd each.

DeepSpeed's launcher starts the job as on a cluster.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.patience import communicate
from tests.start import ROOT, environment_of, run_ranks, wait_for

NEEDED = ("ip", "sshd", "ssh", "ssh-keygen", "pdsh")
PATHS = os.environ["PATH"] + ":/usr/sbin:/sbin"
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def why_not() -> str | None:
    if os.geteuid() != 0:
        return "two hosts need root, for network namespaces"
    missing = [name for name in NEEDED if not shutil.which(name, path=PATHS)]
    if missing:
        return f"two hosts need {', '.join(missing)} (on Debian and Ubuntu: iproute2, openssh-server, pdsh)"
    probe = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "network namespaces are not allowed here" if probe.returncode else None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def ip(*words) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, env=os.environ | {"PATH": PATHS})


class Hosts:
    """Namespaces dsd0 and dsd1, and the environment of a user who is logged in on the first."""

    def __init__(self, folder: Path):
        self.folder, self.names, self.servers = folder, [f"dsd{os.getpid()}-{i}" for i in range(2)], []
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.names[0], "type", "veth", "peer", "name", self.names[1])
        for i, name in enumerate(self.names):
            ip("link", "set", name, "netns", name, "name", "eth0")
            ip("-n", name, "addr", "add", f"{ADDRESSES[i]}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
            f"PermitRootLogin yes\nPidFile none\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        for name in self.names:
            server = [shutil.which("sshd", path=PATHS), "-D", "-e", "-f", str(folder / "sshd_config")]
            log = (folder / f"{name}.log").open("w")
            self.servers.append(
                subprocess.Popen(
                    [*self.inside(name), *server], stdout=log, stderr=log, env=os.environ | {"PATH": PATHS}
                )
            )
        for name, server in zip(self.names, self.servers, strict=True):
            wait_for(lambda name=name: "Server listening" in (folder / f"{name}.log").read_text(), server)
        # These are the ssh settings of the tests' user; those of whoever runs the tests stay untouched.
        (folder / "bin").mkdir()
        (folder / "ssh_config").write_text(
            f"IdentityFile {folder}/user\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        )
        (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
        (folder / "bin" / "ssh").chmod(0o755)
        (folder / "hostfile").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        (folder / "environment").write_text("GLOO_SOCKET_IFNAME=eth0\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
        self.environment = environment_of(
            PATH=f"{folder}/bin:{Path(sys.executable).parent}:{PATHS}",
            DS_ENV_FILE=str(folder / "environment"),
            GLOO_SOCKET_IFNAME="eth0",
        )

    @staticmethod
    def inside(name: str) -> list[str]:
        """Return the words that start a command in a namespace, under a host name of its own."""
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', name]

    def start(self, host: int, *words) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.inside(self.names[host]), *map(str, words)],
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def roots(self) -> list[int]:
        """Return the servers, which start a job's processes on the other host."""
        return [server.pid for server in self.servers]

    def processes(self, name: str) -> list[str]:
        result = subprocess.run(
            ["ip", "netns", "pids", name], capture_output=True, text=True, env=os.environ | {"PATH": PATHS}
        )
        return result.stdout.split()

    def close(self) -> None:
        for name in self.names:
            for number in self.processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(number), signal.SIGKILL)
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    machines = Hosts(tmp_path_factory.mktemp("hosts"))
    yield machines
    machines.close()


@pytest.fixture(scope="module")
def arguments(world, common):
    return ["--teacher", world / "teacher", *common, "--training.dropout", 0.1]


def history(output) -> list:
    return json.loads((output / "curves.json").read_text())["history"]


@pytest.fixture(scope="module")
def one_host(world, arguments):
    output = world / "one host"
    run_ranks(2, "ds_distill", "distill", *arguments, "--output", output)
    return history(output)


def no_ssh(hosts, port: int, *arguments) -> list[subprocess.Popen]:
    return [
        hosts.start(
            i,
            "deepspeed",
            "--hostfile",
            hosts.folder / "hostfile",
            "--no_ssh",
            "--node_rank",
            i,
            "--master_addr",
            ADDRESSES[0],
            "--master_port",
            port,
            "launch.sh",
            *arguments,
        )
        for i in range(2)
    ]


def over_ssh(hosts, *arguments) -> list[subprocess.Popen]:
    return [hosts.start(0, "deepspeed", "--hostfile", hosts.folder / "hostfile", "launch.sh", *arguments)]


def nodes(hosts, port: int, *arguments) -> list[subprocess.Popen]:
    place = ["--nnodes", 2, "--master_addr", ADDRESSES[0], "--master_port", port]
    return [hosts.start(i, "./launch.sh", *place, "--node_rank", i, *arguments) for i in range(2)]


@pytest.mark.promise("Two hosts give bit-equal losses to one host with two ranks, over ssh and without")
def test_two_hosts_over_ssh_learn_what_one_host_does(hosts, arguments, one_host, tmp_path):
    (job,) = over_ssh(hosts, *arguments, "--output", tmp_path / "out")
    out, errors = communicate(job, *hosts.roots)
    assert job.returncode == 0, errors[-4000:]
    assert history(tmp_path / "out") == one_host
    results = [line for line in out.splitlines() if '"export"' in line]
    assert len(results) == 1 and results[0].startswith(f"{ADDRESSES[0]}: "), "the first rank alone says what came out"


@pytest.mark.promise("Two hosts give bit-equal losses to one host with two ranks, over ssh and without")
@pytest.mark.long
@pytest.mark.parametrize("start", [nodes, no_ssh])
def test_two_hosts_without_ssh(hosts, arguments, one_host, tmp_path, start):
    jobs = start(hosts, 29511, *arguments, "--output", tmp_path / "out")
    for job in jobs:
        _, errors = communicate(job, *hosts.roots)
        assert job.returncode == 0, errors[-4000:]
    assert history(tmp_path / "out") == one_host


@pytest.mark.promise("SIGTERM to the outermost process of a job, whatever has started it, loses nothing")
@pytest.mark.parametrize(
    "start, number",
    [
        pytest.param(lambda hosts, *words: nodes(hosts, 29513, *words), 1, marks=pytest.mark.long),
        pytest.param(lambda hosts, *words: no_ssh(hosts, 29514, *words), 1, marks=pytest.mark.long),
        pytest.param(over_ssh, 0, marks=pytest.mark.long),
    ],
    ids=["launch.sh", "deepspeed --no_ssh", "deepspeed over ssh"],
)
def test_two_hosts_are_asked_to_end_at_one(hosts, arguments, tmp_path, start, number):
    jobs = start(hosts, *arguments, "--output", tmp_path / "out", "--training.max_tokens", 10**7)
    wait_for((tmp_path / "out" / "tensorboard").is_dir, *jobs)
    jobs[number].send_signal(signal.SIGTERM)
    errors = [communicate(job, *hosts.roots)[1] for job in jobs]
    assert all(job.returncode != 0 for job in jobs) and "Traceback" not in "".join(errors), errors
    # pdsh and ssh, and with them what the ranks write, end before the ranks do
    wait_for(lambda: all(set(hosts.processes(name)) <= set(map(str, hosts.roots)) for name in hosts.names))
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    steps = re.findall(r"stopped at step (\d+) of", "".join(errors))
    assert [f"step-{int(step):09}" for step in steps] == [checkpoint.name] * (start is not over_ssh)


@pytest.mark.long
@pytest.mark.promise(
    "A network that is cut mid-step ends the job on both hosts within a minute, one sentence each, no orphan"
)
def test_a_link_that_goes_down_ends_the_job_on_both_hosts(hosts, arguments, tmp_path, record_property):
    output = tmp_path / "out"
    jobs = no_ssh(
        hosts, 29512, *arguments, "--output", output, "--training.max_tokens", 10**7, "--training.save_every", 5
    )
    wait_for(lambda: (output / "checkpoints").is_dir() and list((output / "checkpoints").glob("step-*")), jobs[0])
    ip("-n", hosts.names[1], "link", "set", "eth0", "down")
    try:
        began = time.monotonic()
        errors = [communicate(job, *hosts.roots)[1] for job in jobs]
        record_property("seconds", round(time.monotonic() - began))
    finally:
        ip("-n", hosts.names[1], "link", "set", "eth0", "up")
    for job, text in zip(jobs, errors, strict=True):  # one rank speaks on each side of the cut
        messages = [line for line in text.splitlines() if line.startswith("ds-distill: ")]
        assert job.returncode != 0 and len(messages) == 1 and "Traceback" not in text, text[-3000:]
        assert "no heartbeat" in messages[0] or "no answer from the first rank" in messages[0]
    servers = {str(server.pid) for server in hosts.servers}
    assert all(set(hosts.processes(name)) <= servers for name in hosts.names), "orphans"
