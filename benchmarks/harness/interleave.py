"""Contenders of a benchmark: each in a process and environment of its own, as its user would start it, taking turns, so only one works at a time."""

import contextlib
import gc
import multiprocessing
import os
import socket
import statistics
import time
import traceback
from collections.abc import Callable

from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError


class Variant:
    """`make(setting, device)` runs in a new process (`ranks` of them, which make one job, and `jobs` such jobs, which work at once and know nothing of
    each other). It returns the step, a function that takes no arguments and returns the seconds it took, or None when the clock is to say, and a
    dictionary of what it has to say. environment: variables of the process, beside the benchmark's own. serve: the process itself, (link, make,
    setting): reads questions from the link until "stop", and answers (True, what), (False, why not) or, of a mistake, (None, the sentence)."""

    def __init__(
        self,
        name: str,
        make: Callable,
        setting: object,
        *,
        ranks: int = 1,
        jobs: int = 1,
        environment: dict[str, str] | None = None,
        serve: Callable | None = None,
    ):
        self.name, self.seconds, self.memory, self.first, self.once, self.said = name, [], 0, 0.0, False, {}
        spawn, self.links, self.processes = multiprocessing.get_context("spawn"), [], []
        ports = [str(_free_port()) for _ in range(jobs)]
        for number, (port, rank) in enumerate((port, rank) for port in ports for rank in range(ranks)):
            here, there = spawn.Pipe()
            process = spawn.Process(
                target=serve or _serve, args=(there, make, setting), name=f"{name} {rank}", daemon=True
            )
            job = {
                "RANK": str(rank),
                "LOCAL_RANK": str(number),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            with _environment(job | (environment or {})):
                process.start()
            there.close()
            self.links.append(here)
            self.processes.append(process)

    def ask(self, what):
        """What the first rank answers; of "step" the slowest rank's seconds."""
        for link in self.links:
            with contextlib.suppress(OSError):  # one that has ended says so below
                link.send(what)
        answers = [self._answer(number) for number in range(len(self.links))]
        return max(answers) if what == "step" else answers[0]

    def _answer(self, number: int):
        try:
            fine, answer = self.links[number].recv()
        except (EOFError, OSError):
            self.processes[number].join(10)
            code = self.processes[number].exitcode
            fine, answer = (
                False,
                f"its process has ended ({'killed, as where memory runs out' if code == -9 else f'exit status {code}'})",
            )
        if fine is None:
            raise UserError(f"{self.name}: {answer}")
        if not fine:
            raise RuntimeError(f"{self.name}: {answer}")
        return answer

    def stop(self) -> None:
        for link in self.links:
            with contextlib.suppress(OSError):
                link.send("stop")
        for process in self.processes:
            process.join(10)
            process.kill()


def run_interleaved(
    contenders: list[Variant], rounds: int, patience: float = float("inf"), compiling: tuple[str, ...] = ()
) -> None:
    """Fill in each contender's seconds (one a round, of a step after one that is not counted), its peak memory in bytes (models, optimizer and step)
    and the seconds of its first step. One whose first step takes longer than `patience` seconds is not asked again (`once`): that step is its
    measurement; not so where the name is in `compiling`."""
    for number in range(-1, rounds):
        for contender in contenders:
            if contender.once:
                continue
            with spinner(f"{'warm-up' if number < 0 else f'round {number + 1} of {rounds}'}: {contender.name}"):
                if number >= 0:
                    contender.seconds.append(contender.ask("step"))
                    continue
                contender.said = contender.ask("start")
                began = time.perf_counter()
                contender.memory = contender.ask("memory")
                contender.first = time.perf_counter() - began
                contender.once = contender.first > patience and contender.name not in compiling
                if contender.once:
                    contender.seconds = [contender.first]
                else:
                    contender.memory = contender.ask("memory")  # the first step also allocates the optimizer's state


def ratio(theirs: list[float], mine: list[float]) -> float:
    """Median of the ratios within a round; a contender that was asked once is held against every round."""
    return statistics.median(a / b for a, b in zip(theirs * (len(mine) if len(theirs) == 1 else 1), mine, strict=True))


def _serve(link, make: Callable, setting: object) -> None:
    import torch

    from benchmarks.harness.machine import bytes_in_use, peak_bytes
    from benchmarks.harness.timing import timed
    from ds_distill.training.device import local_device

    step = None
    with contextlib.suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        while (what := link.recv()) != "stop":
            try:
                if what == "start":
                    torch.set_num_threads(setting.threads)
                    torch.manual_seed(0)
                    device = local_device()
                    before = bytes_in_use(device)  # what one contender keeps between steps another takes anew in each
                    step, answer = make(setting, device)
                    gc.collect()
                elif what == "memory":
                    answer = peak_bytes(step, device, before)
                elif what == "profile":
                    answer = _profiled(step, device)
                else:
                    said: list[float | None] = []
                    steps = 8 if device.type == "cuda" else 1  # a GPU's step alone would be its start from idling
                    step()  # not counted: in a run a step comes after a step, not after other contenders' gigabytes
                    answer = timed(lambda: [said.append(step()) for _ in range(steps)], device) / steps  # noqa: B023
                    answer = said[-1] or answer
                link.send((True, answer))
            except UserError as error:
                link.send((None, str(error)))
            except Exception:  # the benchmark itself says it, with its name
                link.send((False, traceback.format_exc()))


def _profiled(step: Callable[[], object], device) -> str:
    """One step's time by operator, its own without what it calls, as a table."""
    import torch

    from benchmarks.harness.timing import timed

    activities = [
        torch.profiler.ProfilerActivity.CPU,
        *([torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []),
    ]
    with torch.profiler.profile(activities=activities) as profile:
        timed(step, device)
    return profile.key_averages().table(
        sort_by=f"self_{device.type}_time_total", row_limit=25, max_name_column_width=60
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _environment(changes: dict[str, str]):
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
