"""Batches that a process of their own makes ahead of time.

Each operator of torch releases Python's interpreter lock and takes it again. Where a thread computes beside, taking it
again may last milliseconds, and the kernels of a GPU are launched late. A process has a lock of its own.

The process is given the loader once. It then writes the arrays of a step into a slot of shared memory, and sends their
places through a socket; the slot is given back as soon as its arrays are copied. The shared memory has no name: it
takes no room in /dev/shm, which is small in containers, and nothing of it is left once both processes have ended,
however they ended.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ds_distill.data.batch import Batch, BatchArrays, TokenCounts
from ds_distill.utils.errors import UserError

if TYPE_CHECKING:
    from ds_distill.data.loader import BatchLoader

SLOTS = 3  # steps that are made ahead
ALIGNMENT = 64  # bytes
PACKAGE = Path(__file__).parents[2]


class Place(NamedTuple):
    """Where an array lies in the shared memory."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


class Made(NamedTuple):
    """A step that the process has made: for each micro-batch, the places of its arrays."""

    step: int
    slot: int
    places: list[list[Place | None]]
    counts: TokenCounts


def steps_from_process(
    loader: BatchLoader, first_step: int, last_step: int, pin: bool
) -> Generator[tuple[int, list[Batch], TokenCounts]]:
    """Yield the steps of `BatchLoader.prefetch`, made by one process."""
    worker = _Worker(loader, first_step, last_step)
    try:
        while (made := worker.receive()) is not None:
            batches = [Batch.from_arrays(worker.read(places)) for places in made.places]
            batches = [batch.pinned() if pin else batch.copied() for batch in batches]
            worker.give_back(made.slot)
            yield made.step, batches, made.counts
    finally:
        worker.stop()


class _Worker:
    """The process, from the side of the one that uses its batches."""

    def __init__(self, loader: BatchLoader, first_step: int, last_step: int):
        slot_bytes = size_of_step(loader)
        memory = os.memfd_create("batches")
        try:
            os.ftruncate(memory, SLOTS * slot_bytes)
            self._memory = mmap.mmap(memory, SLOTS * slot_bytes)
            here, there = socket.socketpair()
            with there:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ds_distill.data.batch_worker", str(there.fileno()), str(memory)],
                    pass_fds=(there.fileno(), memory),
                    env=_environment(),
                )
        finally:
            os.close(memory)
        self._link = Connection(here.detach())
        self._send((loader, first_step, last_step, slot_bytes))
        for slot in range(SLOTS):
            self.give_back(slot)

    def receive(self) -> Made | None:
        """Wait for the next step, and return None after the last; raise what the process raised."""
        try:
            answer = self._link.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def read(self, places: list[Place | None]) -> BatchArrays:
        """Return a micro-batch's arrays, which are the shared memory."""
        arrays: list[Any] = [None if place is None else self._read(place) for place in places]
        return BatchArrays(*arrays)

    def _read(self, place: Place) -> np.ndarray:
        flat = np.frombuffer(self._memory, place.dtype, math.prod(place.shape), place.offset)
        return flat.reshape(place.shape)

    def give_back(self, slot: int) -> None:
        """Let the process write into a slot again."""
        self._send(slot)

    def stop(self) -> None:
        """End the process, which has nothing to finish."""
        self._process.kill()
        self._process.wait()
        self._link.close()

    def _send(self, message: object) -> None:
        try:
            self._link.send(message)
        except ConnectionError:
            pass  # The process has ended. What it sent before is still there to be received.

    def _ended(self) -> Exception:
        status = self._process.wait()
        if status >= 0:
            return RuntimeError(f"the process that makes the batches ended with status {status}; see its message above")
        why = {
            -signal.SIGKILL: ", probably because memory ran out",
            -signal.SIGBUS: ", because a file of the prepared tokens was cut or its file system failed",
        }.get(status, "")
        return UserError(
            f"the process that makes the batches was ended by {signal.Signals(-status).name}{why}; the same command "
            "resumes from the last checkpoint"
        )


def size_of_step(loader: BatchLoader) -> int:
    """Return the bytes of shared memory that a step of the loader takes at most."""
    positions = loader.shares.rows * loader.store.manifest["sequence_length"]
    # input_ids, labels, document_ids and masked_rows are int64, token_mask and loss_mask are bool, cu_seqlens is int32
    arrays = 3 * 8 * positions + 8 * loader.shares.rows + 2 * positions + 4 * max(64, 2 << positions.bit_length())
    return loader.accumulation * (arrays + len(BatchArrays._fields) * ALIGNMENT)


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
