"""The command `deepspeed`, which starts DeepSpeed's launcher in a process of its own and passes no signal on to it."""

from __future__ import annotations

import itertools
from pathlib import PurePath

import psutil

_COMMANDS = {"deepspeed", "deepspeed.pt", "ds", "runner.py"}
_MODULE = "deepspeed.launcher.runner"
_DEPTH = 4  # rank, proxy of MPICH on its host, mpiexec, deepspeed


class Runner:
    """The process of the command `deepspeed` above this rank's launcher, if there is one on this host.

    Except over pdsh, a SIGTERM ends that process alone, so that its end must be taken for the signal
    that it was.

    Attributes:
        pid: The number of the process, or None.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        try:
            above = psutil.Process().parents()[:_DEPTH]
            for launcher, runner in itertools.pairwise(above):
                if _is_runner(runner.cmdline()):
                    self._launcher, self.pid = launcher, runner.pid
                    break
        except psutil.Error:  # one has just ended, or belongs to another user
            pass

    @property
    def has_ended(self) -> bool:
        """Whether there was such a process and it has ended."""
        try:
            return self.pid is not None and self._launcher.ppid() != self.pid
        except psutil.NoSuchProcess:  # the launcher has ended too
            return True

    @property
    def hears_nothing(self) -> bool:
        """Whether it is a container's first process, to which the kernel delivers only signals that it handles."""
        return self.pid == 1


def _is_runner(words: list[str]) -> bool:
    """Return whether words that started a process are those of `deepspeed`, or of Python with its script."""
    return any(PurePath(word).name in _COMMANDS or word == _MODULE for word in words[:5])
