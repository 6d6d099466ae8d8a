"""What benchmarks share on a terminal: a line that shows they are alive, and the clock."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable

import torch


@contextlib.contextmanager
def alive(what: str):
    """Show `what` and the seconds it has taken so far, on standard error."""
    done, began = threading.Event(), time.monotonic()

    def show() -> None:
        while True:
            print(f"\r{what}, {time.monotonic() - began:.0f} s  ".ljust(50), end="", file=sys.stderr, flush=True)
            if done.wait(2):
                return

    shower = threading.Thread(target=show, daemon=True)
    shower.start()
    try:
        yield
    finally:
        done.set()
        shower.join()


def end() -> None:
    """Leave the line."""
    print(file=sys.stderr)


def timed(job: Callable[[], object], device: torch.device) -> float:
    """Seconds that `job` takes, its work on the device included."""
    began = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
