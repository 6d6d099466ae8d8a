"""Requests to end a run: signals, and the end of the command that started it."""

import contextlib
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

import torch

from ds_distill.distributed.launch_environment import world_size
from ds_distill.distributed.runner import Runner
from ds_distill.utils.console import log

# SIGUSR1 is what Slurm users often ask for before a job's time ends, and mpirun passes it on to its processes.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the signals in this thread, and in the threads and processes that it starts, which keep it so.

    A terminal and Slurm signal all processes of a job. A compiler that ends by one is an error of torch.compile, which
    would end the run before it can save.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # a handler is called now for what is pending


Item = TypeVar("Item")


class Interrupted(Exception):
    """What takes long was left unfinished, because the run was asked to end."""


class StopRequest:
    """While it is entered, a signal asks for a save and an exit, instead of ending the process.

    So does the end of DeepSpeed's command, which passes no signal on. Ranks agree on it by a flag in
    each step's all-reduce.

    The signals are blocked in this thread, as in `blocked_signals`.
    """

    def __init__(self) -> None:
        self._asked = False
        self._runner = Runner()
        if self._runner.hears_nothing:
            log(
                "the command deepspeed is this container's first process, which SIGTERM does not reach, so that the "
                "run cannot be saved when the container is stopped; start ./launch.sh instead"
            )

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to end the run."""
        return self._asked or not signal.sigpending().isdisjoint(SIGNALS) or self._runner.has_ended

    def interrupt(self, items: Iterable[Item], device: torch.device) -> Iterator[Item]:
        """Collective: yield items, of which all ranks have as many, until a rank was asked to end the run.

        A held-out evaluation takes minutes on few cores, and who ends a run often gives it half a minute.

        Args:
            items: The items.
            device: The device on which the ranks talk to each other.

        Raises:
            Interrupted: This rank or another was asked, and items are left.
        """
        for item in items:
            asked = torch.tensor(float(self.requested), device=device)
            torch.distributed.all_reduce(asked)
            if asked.item():
                raise Interrupted
            yield item

    def __enter__(self) -> "StopRequest":
        # only a process's main thread may say what a signal does; a notebook's may have others
        is_main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._request) for number in SIGNALS} if is_main else {}
        self._blocked = blocked_signals()
        self._blocked.__enter__()
        return self

    def _request(self, signal_number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._blocked.__exit__(None, None, None)
        for number, handler in self._before.items():
            # A launcher answers a lost rank with SIGTERM to the others, which are about to say why they end.
            if kind is None or not issubclass(kind, RuntimeError) or number == signal.SIGINT or world_size() == 1:
                signal.signal(number, handler)
