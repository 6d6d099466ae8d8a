"""Wait for processes without a limit that load alone can break.

A process that hangs is given up; one that is only slow is not.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable

import psutil

IDLE_SECONDS = 120.0  # of nothing but waiting; no test waits that long on purpose
MAX_CPU_SECONDS = 3600.0  # an endless loop reaches this at some time
_IDLE_SHARE = 0.02  # of a core; heartbeats and polls take less, and a starved process is seen to be runnable


class HangWatch:
    """Tells a process that hangs from one that a busy machine keeps waiting.

    A process hangs if it and all its descendants have neither computed nor been ready to for two
    minutes. A process starved by other load is ready to run (state R) or waits for a disk (D) at
    every look.

    Args:
        roots: Process ids; their descendants count with them.
    """

    def __init__(self, roots: Iterable[int]):
        self.roots = list(roots)
        self._restart()
        self._first_cpu = self._cpu

    def _restart(self) -> None:
        self._began, self._looks, self._busy_looks = time.monotonic(), 0, 0
        self._cpu = _cpu_seconds(processes_below(self.roots))

    def check(self) -> str | None:
        """Look once (call this about once per second); return why the processes are given up, or None."""
        processes = processes_below(self.roots)
        cpu = _cpu_seconds(processes)
        self._looks += 1
        self._busy_looks += any(map(_wants_to_run, processes))
        waited = time.monotonic() - self._began
        if cpu - self._cpu > _IDLE_SHARE * max(waited, 10.0) or self._busy_looks > 0.1 * max(self._looks, 10):
            self._restart()
        elif waited > IDLE_SECONDS:
            return f"hangs: for {waited:.0f} s it has only waited"
        if cpu - self._first_cpu > MAX_CPU_SECONDS:
            return f"has computed for {cpu - self._first_cpu:.0f} s"
        return None


def processes_below(roots: Iterable[int]) -> list[psutil.Process]:
    """Return the processes `roots` that are alive, and all their descendants."""
    processes = {}
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            processes |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(processes.values())


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, also where nothing reaps it, as a container's first process may not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def kill_tree(pid: int) -> None:
    """Kill a process and all its descendants, including compilers in process groups of their own."""
    for process in reversed(processes_below([pid])):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # includes its children that have ended
    return total


def _wants_to_run(process: psutil.Process) -> bool:
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{process.pid}/task/{thread}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] in "RD":
                    return True
    return False


def wait_until(condition: Callable[[], object], roots: Iterable[int], pause: float = 0.05) -> str | None:
    """Wait until `condition` holds; return None, or why the processes `roots` are given up."""
    watch, looked = HangWatch(roots), time.monotonic()
    while not condition():
        if time.monotonic() - looked > 1:
            looked = time.monotonic()
            if reason := watch.check():
                return reason
        time.sleep(pause)
    return None


def communicate(job: subprocess.Popen, *more_roots: int) -> tuple[str, str]:
    """Wait for a process started with Popen; return its output.

    A process that hangs is killed with all its descendants.

    Args:
        job: The process.
        more_roots: Processes that do its work without being its descendants, such as an sshd.
    """
    watch = HangWatch([job.pid, *more_roots])
    while True:
        try:
            return job.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            if reason := watch.check():
                kill_tree(job.pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(job.pid, signal.SIGKILL)  # reaches orphans, if the job leads a session
                raise AssertionError(f"{job.args} {reason}:\n{job.communicate()[1][-3000:]}") from None


def run(command: list, **options) -> subprocess.CompletedProcess:
    """Run a command like subprocess.run(capture_output=True, text=True), with `communicate`'s limit only."""
    job = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    out, errors = communicate(job)
    return subprocess.CompletedProcess(job.args, job.returncode, out, errors)
