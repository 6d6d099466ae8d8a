"""Test the lock of a run's folder: living holders are never robbed, dead hosts are, and a stopped holder notices.

A machine is a boot id here. A process that is stopped holds its flock for ever, as a dead host does over NFSv3.
"""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.patience import wait_until
from tests.start import ROOT, environment_of

RENEW = 0.1
SHORT, LONG = 1.0, 1e6


class Holder(subprocess.Popen):
    def __init__(self, folder, boot: str, expire: float):
        super().__init__(
            [sys.executable, "-m", "tests.unit.utils.lease_worker", str(folder), boot, str(RENEW), str(expire)],
            cwd=ROOT,
            env=environment_of(),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def answer(self) -> str:
        return self.stdout.readline().strip()

    def write(self) -> str:
        self.stdin.write("\n")
        self.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def end(self) -> str:
        """End it properly; return its errors."""
        return self.communicate()[1]


@pytest.fixture
def hold(tmp_path):
    holders = []

    def start(boot: str, expire: float = SHORT) -> Holder:
        holders.append(Holder(tmp_path, boot, expire))
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def leases(folder) -> list[str]:
    return sorted(path.name for path in folder.glob(".lease*"))


PROMISE = "The lock of a dead host is taken over after some minutes; a living holder's never is"


@pytest.mark.promise(PROMISE)
def test_a_living_holder_is_not_robbed_from_any_machine(hold, tmp_path):
    first = hold("a")
    assert first.answer() == "held"
    for boot in ("a", "b"):  # the first is refused at once, the second when it has seen the lease change
        other = hold(boot, LONG)
        assert f"in use by another job (process {first.pid} on" in other.answer() and other.wait() == 2
    assert first.write() == "wrote"
    first.end()
    assert first.returncode == 0 and not leases(tmp_path)
    second = hold("b")
    assert second.answer() == "held"


@pytest.mark.promise(PROMISE)
def test_a_stopped_holder_on_another_machine_loses_its_lock_and_notices(hold, tmp_path):
    first = hold("a")
    assert first.answer() == "held" and first.write() == "wrote"
    first.stop()
    refused = hold("a")  # on its own machine the kernel's word counts, which says that it lives
    assert "in use by another job" in refused.answer()
    second = hold("b")
    assert second.answer() == "held" and leases(tmp_path) == [".lease-000002"]
    third = hold("c", LONG)  # the lock file is a new one, which the second holds
    assert f"process {second.pid} on" in third.answer()
    first.stdin.write("\n")  # the first thing that it finds when it wakes is something to write
    first.stdin.flush()
    os.kill(first.pid, signal.SIGCONT)
    out, errors = first.communicate()
    assert first.returncode in (2, 3) and "another job has taken over this folder" in out + errors
    assert second.write() == "wrote"
    assert (tmp_path / "written").read_text().split() == ["a", "b"]
    errors = second.end()
    assert "takes over its lock" in errors and f"process {first.pid} on" in errors and not leases(tmp_path)


@pytest.mark.promise(PROMISE)
def test_of_many_takers_one_wins(hold, tmp_path):
    first = hold("a")
    assert first.answer() == "held"
    first.stop()
    takers = [hold(f"b{number}") for number in range(4)]
    answers = [taker.answer() for taker in takers]
    assert answers.count("held") == 1
    assert all("in use by another job" in answer for answer in answers if answer != "held"), answers
    assert leases(tmp_path) == [".lease-000002"]


def test_without_flock_the_lease_alone_decides(tmp_path, monkeypatch, capsys):
    import errno
    import fcntl

    from ds_distill.utils import lease
    from ds_distill.utils.errors import UserError

    def no_flock(*_):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_flock)
    with lease.FolderLock(tmp_path, RENEW) as lock:
        with pytest.raises(UserError, match=f"in use by another job .process {os.getpid()} on"):
            lease.FolderLock(tmp_path).__enter__()
        lock.check()
        assert wait_until(lambda: lock._renewals > 2, [os.getpid()]) is None
    assert not leases(tmp_path)
    # a dead process of this machine needs no patience
    gone = subprocess.Popen(["true"])
    gone.wait()
    content = lock._content().replace(str(os.getpid()).encode(), str(gone.pid).encode())
    (tmp_path / ".lease-000004").write_bytes(content)
    with lease.FolderLock(tmp_path, RENEW):
        assert leases(tmp_path) == [".lease-000005"]
    # nor does one whose number another process has now, as after a container's restart
    facts = json.loads(lock._content())
    (tmp_path / ".lease-000006").write_text(json.dumps(facts | {"started": facts["started"] - 1}))
    with lease.FolderLock(tmp_path, RENEW):
        assert leases(tmp_path) == [".lease-000007"]
    # in another container the number says nothing, and the lease decides
    monkeypatch.setattr(lease, "pid_namespace", lambda: "another")
    for pid in (os.getpid(), gone.pid):
        (tmp_path / ".lease-000008").write_text(json.dumps(facts | {"pid": pid}))
        with lease.FolderLock(tmp_path, RENEW, 0.1):
            assert leases(tmp_path) == [".lease-000009"]
    assert capsys.readouterr().err.count("takes over its lock") == 2
