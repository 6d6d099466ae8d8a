"""A worker in a process of its own.

A spawned process imports the module of the functions that it calls. This one needs neither torch nor transformers,
whose import takes longer than the work on a small corpus.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from ds_distill.data.duplicates import PieceHasher
from ds_distill.data.hub_sets import unpack_hub_sets
from ds_distill.data.sources import WorkUnit
from ds_distill.data.worker import EncodingSpec, PieceWorker
from ds_distill.utils.parent import watch_parent

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

# A worker's process sets these.
_worker: PieceWorker | PieceHasher
_read: Synchronized[int]  # bytes that all workers have read


def make_worker(spec: EncodingSpec | int) -> PieceWorker | PieceHasher:
    """Return a worker that turns pieces into shards or, given a seed alone, that hashes their documents."""
    return PieceHasher(spec) if isinstance(spec, int) else PieceWorker(spec)


def start_worker(spec: EncodingSpec | int, read: Synchronized[int], hub_sets: dict[tuple[str, bool], bytes]) -> None:
    """Make this process a worker, as in `make_worker`, that adds the bytes it reads to `read`.

    It ends with its parent, which has resolved the data sets of the Hub.
    """
    global _worker, _read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one answers it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    watch_parent(lambda: os._exit(1))
    unpack_hub_sets(hub_sets)
    _worker, _read = make_worker(spec), read


def work(piece: WorkUnit, path: Path) -> None:
    """Do a piece's work into `path`."""
    reported = 0

    def tick(so_far: int) -> None:
        nonlocal reported
        with _read.get_lock():
            _read.value += so_far - reported
        reported = so_far

    _worker(piece, path, tick)
    tick(piece.size)
