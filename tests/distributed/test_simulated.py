"""Test jobs of 64 and 512 ranks without a model: store, heartbeats, order, shares, open files, a rank that hangs."""

import json
import re
import signal
import time

import pytest

from ds_distill.data.shares import Shares
from tests.start import Process, free_port, wait_for
from tests.unit.data.test_loader import make_store

PATIENCE = 60  # seconds; a job's own are 30, but here 512 ranks share the cores of one machine


@pytest.fixture
def start():
    running = []

    def start(hosts: int, *arguments) -> list[Process]:
        port = free_port()
        for host in range(hosts):
            environment = {"HOST": host, "HOSTS": hosts, "MASTER_PORT": port, "LOCAL_RANK": "0"}
            # torch asks for the name of each connection's end, and one lost answer takes five seconds otherwise
            environment["RES_OPTIONS"] = "timeout:1 attempts:1"
            running.append(Process("tests.distributed.simulated_worker", *arguments, **environment))
        for process in running:
            wait_for(lambda process=process: "\n" in process.out.read(), *running)
        return running

    yield start
    for process in running:
        process.kill()


def first_lines(processes) -> list[dict]:
    rows = []
    for process in processes:
        process.out.seek(0)
        rows.append(json.loads(process.out.readline()))
    return rows


@pytest.mark.long
@pytest.mark.promise(
    "Jobs of 64 and 512 simulated ranks start, share each batch, and end with one sentence when a host dies"
)
@pytest.mark.parametrize("ranks", [1, 8], ids=["64", "512"])
def test_a_large_job(start, ranks, record_property):
    """64 processes; of 512 ranks, 8 share a process, each with connections and a heartbeat of its own."""
    data, world, batch, micro = make_store(3000), 64 * ranks, 1000, 3
    began = time.monotonic()
    hosts = start(64, ranks, PATIENCE, data.path, batch, micro)
    record_property("seconds to start", round(time.monotonic() - began))
    rows = first_lines(hosts)
    shares = {int(rank): entries for row in rows for rank, entries in row["shares"].items()}
    assert sorted(shares) == list(range(world))
    for step in range(3):
        entries = sorted(entry for rank in shares for entry in shares[rank][step])
        assert len(entries) == len(set(entries)) == batch
        sizes = [len(shares[rank][step]) for rank in shares]
        assert max(sizes) - min(sizes) <= Shares(batch, micro, world).accumulation, "one per micro-batch at most"
    assert max(row["files"] for row in rows) == rows[0]["files"] > 2 * world
    assert rows[0]["files"] < rows[0]["limit"]
    record_property("open files of the first rank", rows[0]["files"])
    time.sleep(6)  # three heartbeats
    assert all(host.poll() is None for host in hosts)
    hosts[37].signal(signal.SIGSTOP)
    began = time.monotonic()
    ends = [host.wait() for host in hosts if host is not hosts[37]]
    record_property("seconds to end", round(time.monotonic() - began))
    assert {end.returncode for end in ends} == {3}
    sentences = [line for end in ends for line in end.stderr.splitlines() if line.startswith("ds-distill: ")]
    assert (
        len(sentences) == 1
        and f"rank {37 * ranks} " in sentences[0]
        and f"no heartbeat for {PATIENCE} s" in sentences[0]
    )


@pytest.mark.promise("A rank that hangs in a step is named, with its stacks")
def test_a_rank_that_hangs_is_named_with_its_stacks(start):
    hosts = start(3, 1, 600, "", 1, 1, 1)
    wait_for(lambda: "in hang" in open(hosts[1].err.name).read(), *hosts)

    def named() -> list[str]:  # a busy machine may have been slow in earlier steps
        return [line for host in hosts for line in open(host.err.name) if "step 20 has" in line and "is behind" in line]

    wait_for(named, *hosts)
    (line,) = named()
    assert re.search(r"step 20 has not ended for \d+ s, .*: rank 1 \(host .+\) is behind", line)
    assert "stacks of rank 1" in open(hosts[1].err.name).read()
    assert not any("stacks of" in open(hosts[host].err.name).read() for host in (0, 2))
