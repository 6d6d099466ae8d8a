"""The time that each rank takes for its own part of a step. It shows a slow rank, for which all others wait."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import torch

from ds_distill.distributed.process_group import all_gather_object
from ds_distill.utils.console import log_event
from ds_distill.utils.step_clock import STEPS

EVERY = 50  # steps between two comparisons
SLOW = 1.2  # times the median rank's time is out of line …
COSTS = 0.1  # … if this share of a step's time is lost by it


class OwnTime:
    """The time of the parts of a step in which a rank waits for no other: reading, and forward passes."""

    def __init__(self, device: torch.device):
        self.device, self._seconds = device, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Measure a block, without waiting for the device."""
        if self.device.type == "cuda":
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self._events.append(events)
            STEPS.finish_part(events[1].query)
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            STEPS.finish_part()

    def take(self) -> float:
        """Return the seconds since the last call; the device must have finished."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
        self._seconds, self._events = 0.0, []
        return seconds


class RankTimes:
    """Compares the ranks' own times every EVERY steps."""

    def __init__(self) -> None:
        self._own, self._steps, self._began = 0.0, 0, time.perf_counter()
        self._hosts: list[str] | None = None
        self._named: int | None = None  # the rank that was out of line at the last comparison

    def add(self, step: int, seconds: float) -> dict[str, float] | None:
        """Collective: count a step's own time; return the figures of a comparison where one is due.

        Args:
            step: The steps that are done.
            seconds: This rank's own time in this one.
        """
        self._own, self._steps = self._own + seconds, self._steps + 1
        if self._steps < EVERY or torch.distributed.get_world_size() == 1:
            return None
        own, step_seconds = self._own / self._steps, (time.perf_counter() - self._began) / self._steps
        self._own, self._steps, self._began = 0.0, 0, time.perf_counter()
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        times = torch.zeros(torch.distributed.get_world_size(), dtype=torch.float64, device=device)
        times[torch.distributed.get_rank()] = own
        torch.distributed.all_reduce(times)
        if self._hosts is None:
            self._hosts = all_gather_object(socket.gethostname())
        figures, line = compare(times.tolist(), step_seconds, self._hosts)
        slowest = int(figures["slowest_rank"]) if line else None
        if line and slowest != self._named:  # once, not every time
            log_event(f"step {step:,}: {line}")
        self._named = slowest
        return figures


def compare(times: list[float], step_seconds: float, hosts: list[str]) -> tuple[dict[str, float], str | None]:
    """Return the figures of the ranks' own times, and a sentence on the slowest rank where it is out of line.

    Args:
        times: Seconds per step, by rank.
        step_seconds: Seconds of a whole step.
        hosts: The host of each rank.
    """
    ordered = sorted(times)
    half = len(times) // 2
    median = ordered[half] if len(times) % 2 else (ordered[half - 1] + ordered[half]) / 2
    slowest = max(range(len(times)), key=times.__getitem__)
    figures = {"min": ordered[0], "median": median, "max": ordered[-1], "slowest_rank": float(slowest)}
    lost = times[slowest] - median
    if times[slowest] <= SLOW * median or lost <= COSTS * step_seconds:
        return figures, None
    return figures, (
        f"rank {slowest} on {hosts[slowest]} is slow: its own part of a step takes {times[slowest]:.3f} s, where the "
        f"median rank takes {median:.3f} s, and all wait for it ({lost / step_seconds:.0%} of a step)"
    )
