"""TensorBoard's event files."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter, SummaryWriter

from ds_distill.utils.console import log


class TensorBoard:
    """Event files in a folder. The steps beyond `step` that it already holds are hidden.

    Where the folder cannot be written, the run continues without them.
    """

    def __init__(self, folder: Path, step: int):
        self._folder = folder
        self._writer: SummaryWriter | None = None
        threading.excepthook = _show_others
        with self._giving_up():
            self._writer = SummaryWriter(folder, purge_step=step + 1 if step else 0)

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Write scalars as one event; add_scalar for each would take 1 % of a step of 60 ms."""
        shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
        self._use(lambda writer: cast(FileWriter, writer.file_writer).add_summary(Summary(value=shown), step))

    def flush(self) -> None:
        """Write out the events that wait."""
        self._use(SummaryWriter.flush)

    def close(self, finished: bool) -> None:
        """Write out all events."""
        self._use(SummaryWriter.close)

    def _use(self, action: Callable[[SummaryWriter], Any]) -> None:
        if self._writer is not None:
            with self._giving_up():
                action(self._writer)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            place = os.fsdecode(error.filename or self._folder)
            log(f"{place}: {error.strerror}; the run continues without tensorboard")


def _show_others(failed: Any, hook: Callable[[Any], Any] = threading.excepthook) -> None:
    """Show the error of a thread, unless it is a writer's, which the next call raises."""
    if not type(failed.thread).__module__.startswith("tensorboard."):
        hook(failed)
