"""Test the waiting for processes: a hang is given up, a busy machine is not."""

import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from tests import patience


def test_what_only_waits_is_given_up_and_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(patience, "IDLE_SECONDS", 1.0)
    program = (
        "import subprocess, sys, time; child = subprocess.Popen(['sleep', '600'], process_group=0); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    child = psutil.Process(int(job.stdout.readline()))
    with pytest.raises(AssertionError, match=r"hangs: for \d+ s it has only waited"):
        patience.communicate(job)
    deadline = time.monotonic() + 600
    while not patience.has_ended(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert patience.has_ended(child)


def test_what_a_busy_machine_keeps_waiting_is_not_given_up(monkeypatch):
    """It is ready to run at every look, and has not been given any time."""
    now = [0.0]
    monkeypatch.setattr(patience, "IDLE_SECONDS", 2.0)
    monkeypatch.setattr(patience, "_cpu_seconds", lambda processes: 0.0)
    job = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        job.stdout.readline()
        monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))
        watch = patience.HangWatch([job.pid])
        for _ in range(12):
            now[0] += 0.5
            assert watch.check() is None
    finally:
        patience.kill_tree(job.pid)
        job.wait()


def test_what_never_ends_is_given_up_by_what_it_has_computed(monkeypatch):
    monkeypatch.setattr(patience, "MAX_CPU_SECONDS", 0.5)
    with pytest.raises(AssertionError, match="has computed for"):
        patience.run([sys.executable, "-c", "while True: pass"])
