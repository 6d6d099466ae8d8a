"""Requests to end a run: signals, and the end of the command that started it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TypeVar

import torch

from ds_distill.distributed.launch_environment import world_size
from ds_distill.distributed.runner import Runner
from ds_distill.utils.console import log, log_event
from ds_distill.utils.stop_signals import heeded_signals

AGAIN = 1.0  # seconds after which a second Ctrl-C is a person's, and not a launcher's that passes on the first one


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the signals in this thread, and in the threads and processes that it starts, which keep it so.

    A terminal and Slurm signal all processes of a job. A compiler that ends by one is an error of torch.compile, which
    would end the run before it can save.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heeded_signals())
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
    each step's all-reduce. The first signal is answered by a line in the log, and a second Ctrl-C ends
    the process at once, whatever it is doing. A signal that comes too late to end the run has its usual
    effect at the end.

    The signals are blocked in this thread, as in `blocked_signals`.

    Attributes:
        answered: Whether the run ends before its time, because this rank or another was asked.
    """

    def __init__(self) -> None:
        self.answered = False
        self._heard: list[int] = []
        self._runner = Runner()
        if self._runner.hears_nothing:
            log(
                "the command deepspeed is this container's first process, which SIGTERM does not reach, so that the "
                "run cannot be saved when the container is stopped; start ./launch.sh instead"
            )

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to end the run."""
        return bool(self._heard) or not signal.sigpending().isdisjoint(self._heeded) or self._runner.has_ended

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
        self._heeded = heeded_signals()
        # only a process's main thread may say what a signal does; a notebook's may have others
        is_main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._handle) for number in self._heeded} if is_main else {}
        self._blocked = blocked_signals()
        self._blocked.__enter__()
        self._left = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()  # with the signals blocked, so that it can wait for them
        return self

    def _listen(self) -> None:
        """Take signals from the process while this thread's Python code may be in a long call."""
        while not self._left.wait(0.2):
            # with a time to wait, Python gives a number that is none once the process has been suspended for longer
            while taken := signal.sigtimedwait(self._heeded, 0):
                self._handle(taken.si_signo)

    def _handle(self, number: int, frame: FrameType | None = None) -> None:
        now = time.monotonic()
        if not self._heard:
            self._first = now
            name = signal.Signals(number).name
            log_event(f"asked to end by {name}: saving after this step; Ctrl-C ends at once and saves nothing")
        elif number == signal.SIGINT and now - self._first > AGAIN:
            os._exit(128 + number)  # the main thread may be in a call that never returns
        self._heard.append(number)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._left.set()
        self._listener.join()
        self._blocked.__exit__(None, None, None)
        for number, handler in self._before.items():
            # A launcher answers a lost rank with SIGTERM to the others, which are about to say why they end.
            if kind is None or not issubclass(kind, RuntimeError) or number == signal.SIGINT or world_size() == 1:
                signal.signal(number, handler)
        if kind is None and self._heard and self._before and not self.answered:
            signal.raise_signal(self._heard[0])
