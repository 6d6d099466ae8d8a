"""Output for a person at the terminal: only the first rank writes it, on standard error.

Standard output belongs to results.
"""

import contextlib
import functools
import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from datetime import datetime
from typing import TypeVar

from tqdm import tqdm
from tqdm.std import Bar
from tqdm.utils import disp_len, disp_trim

from ds_distill.utils.progress import note_progress

Item = TypeVar("Item")


def is_first() -> bool:
    """Return whether this process is the job's first rank, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def log_once(key: str, line: str, *, by_all: bool = False) -> None:
    """Print `line`, unless a rank of the job has printed `key` before.

    A line that all ranks find is printed once, and a line that one rank finds is printed by that
    one.

    Args:
        key: What the ranks have in common.
        line: The line.
        by_all: Whether all ranks are known to find it, however late.
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
    deadline = time.monotonic() + (60 if by_all else 2)
    while is_first() and store.add(key, 0) < world and time.monotonic() < deadline:
        time.sleep(0.02)  # the store ends with this rank, and the others must be able to ask


def log(text: str) -> None:
    """Print `text` on the first rank's standard error, above the bars of a terminal."""
    if not is_first():
        return
    bars = getattr(tqdm, "_instances", ())
    with tqdm.external_write_mode(file=sys.stderr) if bars else contextlib.nullcontext():
        clear = "\r\x1b[K" if _spinners and on_terminal() else ""
        print(f"{clear}{text}", file=sys.stderr, flush=True)


def log_event(text: str) -> None:
    """Log something that happened during a long job. A log has its date and time, a terminal has a clock beside it."""
    log(text if on_terminal() else f"{now()} {text}")


def now() -> str:
    """Return the local date and time, as in 2026-11-28 14:05:00."""
    return datetime.now().isoformat(" ", "seconds")


def duration(seconds: float) -> str:
    """Return a time in words of two units at most, such as "2 h 13 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"


def log_header(rows: Mapping[str, str]) -> None:
    """Log what a job is about to do: a label and a text per line, in 80 columns where the words allow it."""
    width = max(map(len, rows)) + 2
    log(
        "\n".join(
            textwrap.fill(
                text,
                80,
                initial_indent=label.ljust(width),
                subsequent_indent=" " * width,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for label, text in rows.items()
        )
    )


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


def terminal_width() -> int:
    """Return the columns of the terminal on standard error; 80 where it does not tell."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):  # a stream without a file, as in a notebook
        return 80


class _Pause:
    """Tells when a log needs another progress line: after 10 s, then every half minute."""

    def __init__(self):
        self.next = time.monotonic() + 10

    def is_over(self) -> bool:
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + 30
        return True


class ProgressBar(tqdm):
    """A bar behind its figures, in one line of any width. Its moves count as progress, also on silent ranks."""

    WIDTHS = 5, 40  # of the bar alone: details make room for the first, and no bar is wider than the second
    disable: bool
    figures: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    is_even = True  # whether the units take about as long as each other, so that the time left can be estimated

    def update(self, n: float = 1) -> bool | None:
        if n:
            note_progress()
        return super().update(n)

    def show(self, *figures: str, details: tuple[str, ...] = ()) -> None:
        """Set the figures of the next display, the most important first, and those for wide terminals and logs."""
        self.figures, self.details = figures, details

    def parts(self, done: str) -> list[str]:
        """Return what the line says after its label, without the details, the most important first.

        Args:
            done: The amount done, with the total.
        """
        facts = self.format_dict
        elapsed = facts["elapsed"]
        rate = facts["rate"] or ((self.n - self.initial) / elapsed if elapsed else 0)
        parts = [done, *self.figures, *([self.postfix] if self.postfix else [])]
        if rate and len(parts) == 1:
            parts.append(self._rate(rate))
        if self.n == self.total:
            parts.append(f"in {tqdm.format_interval(elapsed)}")
        elif self.total and rate and self.is_even:
            parts.append(f"{tqdm.format_interval((self.total - self.n) / rate)} left")
        elif elapsed >= 1:
            parts.append(f"{tqdm.format_interval(elapsed)} so far")
        return parts

    def amount(self, between: str) -> str:
        """Return the amount done and the total, with `between` between them, such as "12/40" or "1.2/6.0 MB"."""
        numbers = [self.n, self.total] if self.total else [self.n]
        texts = [f"{number / 1e6:,.1f}" if self.unit == "B" else f"{number:,.0f}" for number in numbers]
        return between.join(texts)

    @property
    def _units(self) -> str:
        if self.total == 1:
            return self.unit.removesuffix("s")
        return self.unit if self.unit.endswith("s") else f"{self.unit}{'es' if self.unit.endswith('ch') else 's'}"

    def _rate(self, rate: float) -> str:
        if self.unit == "B":
            return f"{rate / 1e6:,.1f} MB/s"
        return f"{rate:,.0f} {self._units}/s" if rate >= 2 else f"{1 / rate:,.1f} s per {self.unit}"

    def __str__(self) -> str:
        least, most = self.WIDTHS
        width = terminal_width() - 1
        parts = self.parts(f"{self.amount('/')} {'MB' if self.unit == 'B' else self._units}")
        while len(parts) > 1 and disp_len(self._line(parts)) > width:
            parts.pop()
        for detail in self.details:
            if disp_len(self._line([*parts, detail])) + (3 + least if self.total else 0) > width:
                break
            parts.append(detail)
        line = self._line(parts)
        room = min(width - disp_len(line) - 3, most)
        if self.total and room >= least:
            line += f" |{Bar(self.n / self.total, room, Bar.ASCII if self.ascii else Bar.UTF)}|"
        return disp_trim(line, width)

    def _line(self, parts: list[str]) -> str:
        return f"{self.desc.removesuffix(': ')}: {', '.join(parts)}"


class _Lines(ProgressBar):
    """A bar for an output that is no terminal: whole lines, few of them, and one at the end."""

    def __init__(self, *arguments, **options):
        self.pause, self.last_printed = _Pause(), -1
        super().__init__(*arguments, **options)

    def __str__(self) -> str:
        amount = self.amount(" of ")
        parts = self.parts(f"{amount} MB" if self.unit == "B" else f"{self.unit} {amount}")
        return f"{now()} {self._line([*parts, *self.details])}"

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


def progress(total: int | None, label: str, unit: str, *, initial: int = 0, mixed: bool = False) -> ProgressBar:
    """Return a progress bar, or lines in a log; other ranks stay silent.

    Args:
        total: The amount of work. Without it the bar shows only rate and time.
        label: The text in front of the figures.
        unit: The unit of the work, in the singular. "B" is shown in MB.
        initial: The amount already done.
        mixed: Whether units of unlike length follow one another in random order, so that the mean over all
            of them tells the time left, and the last few do not.
    """
    kind = ProgressBar if on_terminal() else _Lines
    return kind(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        file=sys.stderr,
        disable=not is_first(),
        mininterval=0.5,
        smoothing=0 if mixed else 0.3,  # of the rate; 0 is tqdm's mean since the start, 0.3 its default
    )


def progress_over(items: Iterable[Item], label: str, unit: str = "batch", total: int | None = None) -> Iterator[Item]:
    """Yield the items behind a progress bar.

    Args:
        items: The items, each of which counts once its work is done: when the next one is asked for.
        label: As in `progress`.
        unit: As in `progress`.
        total: The number of items; by default their own length, if they have one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(total, label, unit) as bar:
        for item in items:
            yield item
            bar.update()


def skip(bar: tqdm, amount: int) -> None:
    """Advance the bar over what an earlier start has done, which does not count in its rate."""
    if not bar.disable:
        bar.initial += amount
        bar.last_print_n += amount
        bar.n += amount
        bar.refresh()


LOOK = 2.0  # seconds between two displays of a spinner
_spinners: list[object] = []  # those that run, the outermost first


@contextlib.contextmanager
def spinner(label: str):
    """Show `label` and the seconds it has taken so far, for work without a measure of its progress.

    Only the first rank shows it. A log gets a line now and then. Within another, the inner one shows.
    """
    done, began, terminal, pause = threading.Event(), time.monotonic(), on_terminal(), _Pause()
    stream = sys.stderr  # the work may silence what it calls

    def show() -> None:
        while True:
            line = f"{label}, {time.monotonic() - began:.0f} s"
            innermost = _spinners[-1] is done
            if innermost and terminal:
                print(f"\r{disp_trim(line, terminal_width() - 1)}\x1b[K", end="", file=stream, flush=True)
            elif innermost and pause.is_over():
                print(f"{now()} {line}", file=stream, flush=True)
            if done.wait(LOOK):
                return

    shower = threading.Thread(target=show, daemon=True)
    if is_first():
        _spinners.append(done)
        shower.start()
    try:
        yield
    finally:
        done.set()
        if is_first():
            shower.join()
            _spinners.remove(done)
            if terminal:
                print("\r\x1b[K", end="", file=stream, flush=True)
