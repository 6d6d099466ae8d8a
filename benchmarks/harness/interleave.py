"""Run the variants of a benchmark in turns, each in a process and an environment of its own.

Each variant starts as its user would start it, and only one works at a time.
"""

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
    """A variant of a benchmark: one or several processes that run steps on request.

    Args:
        name: The variant's name in messages and results.
        make: `make(setting, device)` runs in each new process. It returns the step and a dictionary
            that describes the variant. The step takes no arguments. It returns the seconds it
            took, or None if it is to be timed from outside.
        setting: The first argument of `make`.
        ranks: The number of processes that make one job.
        jobs: The number of such jobs. They work at once and know nothing of each other.
        environment: Variables of the processes, in addition to the benchmark's own.
        serve: The function that the processes run, called with (link, make, setting). It reads
            questions from the link until "stop". It answers (True, result), (False, the traceback),
            or (None, one sentence) for a user's mistake.
    """

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
        self.name, self.seconds, self.memory, self.first, self.once, self.description = name, [], 0, 0.0, False, {}
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
        """Return the first rank's answer; for "step", return the slowest rank's seconds."""
        for link in self.links:
            with contextlib.suppress(OSError):  # a process that has ended is reported below
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
                "its process has ended "
                f"({'killed, probably because memory ran out' if code == -9 else f'exit status {code}'})",
            )
        if fine is None:
            raise UserError(f"{self.name}: {answer}")
        if not fine:
            raise RuntimeError(f"{self.name}: {answer}")
        return answer

    def stop(self) -> None:
        """Stop the processes; kill those that have not ended after 10 seconds."""
        for link in self.links:
            with contextlib.suppress(OSError):
                link.send("stop")
        for process in self.processes:
            process.join(10)
            process.kill()
            process.join()


def run_interleaved(
    variants: list[Variant], rounds: int, patience: float = float("inf"), compiling: tuple[str, ...] = ()
) -> None:
    """Fill in the seconds, the peak memory and the first step's seconds of each variant.

    Each round contributes the seconds of one step, which follows an uncounted step. The memory is
    in bytes and covers models, optimizer and step.

    Args:
        variants: The variants, in the order of their turns.
        rounds: The number of rounds after the warm-up.
        patience: A variant whose first step takes longer than this many seconds runs no other
            step. That step is its measurement, and `once` is set.
        compiling: Names of variants to which `patience` does not apply.
    """
    for number in range(-1, rounds):
        for variant in variants:
            if variant.once:
                continue
            with spinner(f"{'warm-up' if number < 0 else f'round {number + 1} of {rounds}'}: {variant.name}"):
                if number >= 0:
                    variant.seconds.append(variant.ask("step"))
                    continue
                variant.description = variant.ask("start")
                began = time.perf_counter()
                variant.memory = variant.ask("memory")
                variant.first = time.perf_counter() - began
                variant.once = variant.first > patience and variant.name not in compiling
                if variant.once:
                    variant.seconds = [variant.first]
                else:
                    variant.memory = variant.ask("memory")  # the first step also allocates the optimizer's state


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Return the median of the ratios within a round; a variant with a single step is compared with every round."""
    repeated = numerators * (len(denominators) if len(numerators) == 1 else 1)
    return statistics.median(a / b for a, b in zip(repeated, denominators, strict=True))


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
                    before = bytes_in_use(device)  # others allocate in each step what one keeps between steps
                    step, answer = make(setting, device)
                    gc.collect()
                elif what == "memory":
                    answer = peak_bytes(step, device, before)
                elif what == "profile":
                    answer = _profiled(step, device)
                else:
                    step_seconds: list[float | None] = []
                    steps = 8 if device.type == "cuda" else 1  # a single step would time a GPU's start from idle
                    step()  # uncounted: in a real run, a step follows a step, not other variants' gigabytes
                    answer = timed(lambda: [step_seconds.append(step()) for _ in range(steps)], device) / steps  # noqa: B023
                    answer = step_seconds[-1] or answer
                link.send((True, answer))
            except UserError as error:
                link.send((None, str(error)))
            except Exception:  # the benchmark reports it with the variant's name
                link.send((False, traceback.format_exc()))


def _profiled(step: Callable[[], object], device) -> str:
    """Return a table of one step's time by operator, excluding the operators that each one calls."""
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
