"""Output for a person at the terminal: only the first rank writes it, on standard error.

Standard output belongs to results.
"""

import contextlib
import functools
import os
import sys
import threading
import time

from tqdm import tqdm

from ds_distill.utils.progress import note_progress


def is_first() -> bool:
    """Return whether this process is the job's first rank, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def log_once(key: str, line: str) -> None:
    """Print `line`, unless a rank of the job has printed `key` before.

    A line that all ranks find is printed once, and a line that one rank finds is printed by that
    one.
    """
    distributed = sys.modules.get("torch.distributed")  # a mistake in the arguments need not wait for the import
    if distributed is None or not distributed.is_initialized() or distributed.get_world_size() == 1:
        if is_first():
            print(line, file=sys.stderr, flush=True)
        return
    store, key, world = distributed.distributed_c10d._get_default_store(), f"logged {key}", distributed.get_world_size()
    try:
        first = store.add(key, 1) == 1
    except RuntimeError:  # the rank that keeps the store is gone
        first = True
    if first:
        # at once, because the launcher kills the remaining ranks of a job that lost one
        print(line, file=sys.stderr, flush=True)
    deadline = time.monotonic() + 2
    while is_first() and store.add(key, 0) < world and time.monotonic() < deadline:
        time.sleep(0.02)  # the store ends with this rank, and the others must be able to ask


def log(text: str) -> None:
    """Print `text` on the first rank's standard error."""
    if is_first():
        print(text, file=sys.stderr, flush=True)


@functools.cache
def log_once_per_process(line: str) -> None:
    """Log a line, unless this process has logged it before: several checks may look at the same input."""
    log(line)


TRACE = 0.01  # share of a whole up to which a loss is counted but not reported


def log_if_significant(count: int, total: int, line: str) -> None:
    """Log `line` where `count` is more than a trace of `total`."""
    if count > TRACE * total:
        log(line)


def close_bars() -> None:
    """Move the cursor to a line of its own where an unfinished bar has left it in the middle of one."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def on_terminal() -> bool:
    """Return whether standard error is a terminal whose line can be rewritten; else it is a file, a pipe or a log."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


class _Pause:
    """Tells when a log needs another progress line: after 10 s, then ever more rarely, a hundred times in 36 hours."""

    def __init__(self):
        self.began = time.monotonic()
        self.next = self.began + 10

    def is_over(self) -> bool:
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + max(30, (now - self.began) / 10)
        return True


class _Bar(tqdm):
    """A bar whose moves count as the process's progress, also on ranks that do not show it."""

    disable: bool

    def update(self, n: float = 1) -> bool | None:
        if n:
            note_progress()
        return super().update(n)


class _Lines(_Bar):
    """A bar for an output that is no terminal: whole lines, few of them, and one at the end."""

    def __init__(self, *arguments, **options):
        self.pause, self.last_printed = _Pause(), -1
        super().__init__(*arguments, **options)

    def __str__(self) -> str:
        shown = self.format_dict | {"ncols": None}
        if self.total:
            shown["bar_format"] = (
                "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            )
        return self.format_meter(**shown)

    def display(self, msg=None, pos=None) -> bool:
        if self.pause.is_over():
            print(self, file=self.fp, flush=True)
            self.last_printed = self.n
        return True

    def clear(self, nolock=False) -> None:
        """Do nothing: printed lines stay."""

    def close(self) -> None:
        if self.disable:
            return
        if self.n != self.last_printed:
            print(self, file=self.fp, flush=True)
        self.disable = True
        self._decr_instances(self)


def progress(total: int | None, label: str, unit: str, *, initial: int = 0) -> tqdm:
    """Return a progress bar, or lines in a log; other ranks stay silent.

    Args:
        total: The amount of work. Without it the bar shows only rate and time.
        label: The text in front of the bar.
        unit: The unit of the work. "B", "char" and "token" are scaled to k and M.
        initial: The amount already done.
    """
    scaled = unit in ("B", "char", "token")
    kind = _Bar if on_terminal() else _Lines
    return kind(
        total=total,
        initial=initial,
        desc=label,
        unit=unit if unit == "B" else f" {unit}",
        unit_scale=scaled,
        file=sys.stderr,
        disable=not is_first(),
        mininterval=0.5,
        dynamic_ncols=True,
    )


def skip(bar: tqdm, amount: int) -> None:
    """Advance the bar over what an earlier start has done, which does not count in its rate."""
    if not bar.disable:
        bar.initial += amount
        bar.last_print_n += amount
        bar.n += amount
        bar.refresh()


@contextlib.contextmanager
def spinner(label: str):
    """Show `label` and the seconds it has taken so far, for work without a measure of its progress.

    Only the first rank shows it. A log gets a line now and then.
    """
    done, began, terminal, pause = threading.Event(), time.monotonic(), on_terminal(), _Pause()

    def show() -> None:
        while True:
            line = f"{label}, {time.monotonic() - began:.0f} s"
            if terminal:
                print(f"\r{line}  ".ljust(50), end="", file=sys.stderr, flush=True)
            elif pause.is_over():
                print(line, file=sys.stderr, flush=True)
            if done.wait(2):
                return

    shower = threading.Thread(target=show, daemon=True)
    if is_first():
        shower.start()
    try:
        yield
    finally:
        done.set()
        if is_first():
            shower.join()
        if is_first() and terminal:
            print("\r".ljust(51) + "\r", end="", file=sys.stderr, flush=True)
