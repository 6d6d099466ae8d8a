"""Batches that a thread makes ahead of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING

from ds_distill.data.batch import Batch, TokenCounts

if TYPE_CHECKING:
    from ds_distill.data.loader import BatchLoader


def steps_from_thread(
    loader: BatchLoader, first_step: int, last_step: int, pin: bool
) -> Generator[tuple[int, list[Batch], TokenCounts]]:
    """Yield the steps of `BatchLoader.prefetch`, made by one thread."""
    ready: queue.Queue = queue.Queue(maxsize=2)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(first_step, last_step):
                if stop.is_set():
                    return
                batches = loader.micro_batches(step)
                put((step, [batch.pinned() for batch in batches] if pin else batches, loader.counts(step)))
            put(None)
        except BaseException as error:  # Whatever the error is, the consumer must not wait forever.
            put(error)

    thread = threading.Thread(target=work, name="batch-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
