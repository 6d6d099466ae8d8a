"""The command `deepspeed`, which starts DeepSpeed's launcher in a process of its own and passes no signal on to it."""

from __future__ import annotations

import os
from pathlib import PurePath

import psutil

_COMMANDS = {"deepspeed", "deepspeed.pt", "ds", "runner.py"}
_MODULE = "deepspeed.launcher.runner"


class Runner:
    """The process of the command `deepspeed` above this rank's launcher, if there is one.

    On one host, and with --no_ssh, a SIGTERM ends that process alone, so that its end must be taken
    for the signal that it was.

    Attributes:
        pid: The number of the process, or None.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        try:
            self._launcher = psutil.Process(os.getppid())
            runner = self._launcher.parent()
            if runner is not None and _is_runner(runner.cmdline()):
                self.pid = runner.pid
        except psutil.Error:  # it has just ended, or belongs to another user
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
