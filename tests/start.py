"""Start a test's processes: `python -m MODULE ARGUMENTS`, forked from a process that has the libraries loaded."""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from tests.patience import kill_tree, wait_until

ROOT = Path(__file__).parents[1]
_PR_SET_PDEATHSIG = 1
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8  # each has ports of its own
_PORTS = range(10_000 + 2_000 * _worker, 12_000 + 2_000 * _worker)
_ports = itertools.count(os.getpid())
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.preload"])


def environment_of(**changes) -> dict[str, str]:
    """Return the environment of a lone CPU process, with `changes`."""
    variables = os.environ | {
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    return {key: value for key, value in variables.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | changes


def _run(module: str, arguments: list[str], environment: dict, out: str, err: str) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # killed tests leave no processes behind
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_NOCTTY)
        os.dup2(file, number)
        os.close(file)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    if os.isatty(1):  # the fork's streams take what is below them for a file, as it was
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2))
    sys.stdout.reconfigure(line_buffering=True)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Process:
    """A process that has started; its output goes to files."""

    def __init__(self, module: str, *arguments, **environment):
        self.words = [str(word) for word in arguments]
        self.out, self.err = (tempfile.NamedTemporaryFile("r") for _ in range(2))
        self._start(module, environment, self.out.name, self.err.name)

    def _start(self, module: str, environment: dict, out: str, err: str) -> None:
        values = environment_of(**{key: str(value) for key, value in environment.items()})
        self._process = _forks.Process(target=_run, args=(module, self.words, values, out, err))
        with mock.patch.dict(os.environ, environment_of()):  # the libraries read it while they are imported
            self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process and all its descendants."""
        kill_tree(self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # reaches orphans too
        self._process.join()

    def wait(self) -> subprocess.CompletedProcess:
        if reason := wait_until(lambda: self._process.join(0.05) or self.poll() is not None, [self.pid], pause=0):
            self.kill()
            raise AssertionError(f"{self.words} {reason}:\n{self.err.read()[-3000:]}")
        texts = [Path(file.name).read_text() for file in (self.out, self.err)]
        return subprocess.CompletedProcess(self.words, self.poll(), *texts)


class OnTerminal(Process):
    """A process on a pseudo-terminal of `columns`; what it writes is in `written`, with the control characters."""

    def __init__(self, columns: int, module: str, *arguments, **environment):
        self.words, self.written = [str(word) for word in arguments], ""
        self._ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (50, columns))
        self._start(module, {"TERM": "xterm"} | environment, os.ttyname(theirs), os.ttyname(theirs))
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(theirs,), daemon=True)
        self._reader.start()

    def _read(self, theirs: int) -> None:
        # This process keeps the terminal open, so that it is there from the first to the last read.
        with open(theirs), open(self._ours, "rb", buffering=0) as ours:
            parts, ended = [], False
            while not ended:
                ended = self._ended.is_set()
                while select.select([ours], [], [], 0.1)[0]:
                    parts.append(ours.read(65536))
        self.written = b"".join(parts).decode()

    def wait(self) -> subprocess.CompletedProcess:
        reason = wait_until(lambda: self._process.join(0.05) or self.poll() is not None, [self.pid], pause=0)
        if reason:
            self.kill()
        self._ended.set()
        self._reader.join()
        assert not reason, f"{self.words} {reason}:\n{self.written[-3000:]}"
        return subprocess.CompletedProcess(self.words, self.poll(), self.written, "")


def ds_distill(*arguments, **environment) -> subprocess.CompletedProcess:
    """Run a command as a user would."""
    return Process("ds_distill", *arguments, **environment).wait()


def free_port() -> int:
    """Return a port that no process listens at, another one at each call.

    It is none of those that the kernel gives to whoever asks for any, since a rank binds it only seconds later.
    """
    while True:
        port = _PORTS.start + next(_ports) % len(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start_ranks(
    world: int, module: str, *arguments, rank_arguments: Callable[[int], list] = lambda rank: []
) -> list[Process]:
    """Start `world` gloo ranks on this machine and return them by rank; `rank_arguments` gives further arguments."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": world}
    return [
        Process(module, *arguments, *rank_arguments(rank), **shared, RANK=rank, LOCAL_RANK=rank)
        for rank in range(world)
    ]


def run_ranks(world: int, module: str, *arguments) -> str:
    """Run `world` ranks to their end; return the first one's standard output, or fail with a failing rank's errors."""
    ranks = start_ranks(world, module, *arguments)
    try:
        results = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, done in enumerate(results):
        assert done.returncode == 0, f"rank {number} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return results[0].stdout


def wait_for(condition: Callable[[], object], *processes, pause: float = 0.05) -> None:
    """Wait until `condition` holds; fail if a process ends before that, or hangs."""

    def holds() -> bool:
        if condition():
            return True
        assert all(process.poll() is None for process in processes), "it ended before"
        return False

    reason = wait_until(holds, [process.pid for process in processes] or [os.getpid()], pause)
    assert reason is None, f"waited in vain: a process {reason}"
