"""TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter, SummaryWriter


class TensorBoard:
    """Event files in a folder. The steps beyond `step` that it already holds are hidden."""

    def __init__(self, folder: Path, step: int):
        self._writer = SummaryWriter(folder, purge_step=step + 1 if step else 0)

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Write scalars as one event; add_scalar for each would take 1 % of a step of 60 ms."""
        shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
        cast(FileWriter, self._writer.file_writer).add_summary(Summary(value=shown), step)

    def flush(self) -> None:
        """Write out the events that wait."""
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Write out all events."""
        self._writer.close()
