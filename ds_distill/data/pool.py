"""Work on the pieces of a corpus, by this process or by several worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from ds_distill.data.hub_sets import pack_hub_sets
from ds_distill.data.sources import WorkUnit
from ds_distill.data.worker import EncodingSpec
from ds_distill.data.worker_process import make_worker, start_worker, work
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.machine import cores


def work_on_pieces(
    pieces: dict[Path, WorkUnit], spec: EncodingSpec | int, workers: int, progress: Callable[[int, int], None]
) -> None:
    """Do the work on each piece into the path that it is listed under, unless that exists.

    Args:
        pieces: The pieces by path.
        spec: What `make_worker` takes.
        workers: Number of processes; 0 means one per core.
        progress: Called with the bytes read and the total bytes.
    """
    left = {path: piece for path, piece in pieces.items() if not path.exists()}
    total = sum(piece.size for piece in pieces.values())
    before = total - sum(piece.size for piece in left.values())
    progress(before, total)
    # The workers are spawned, not forked: the calling process may hold threads and a GPU.
    context, workers = multiprocessing.get_context("spawn"), min(workers or cores(), len(left))
    try:
        read = context.Value("q", 0) if workers > 1 else None
    except OSError as error:
        log(f"{error.filename or 'shared memory'}: {error.strerror}; preparing with one worker instead of {workers}")
        workers = 1
    if workers <= 1:
        worker = make_worker(spec)
        for path, piece in left.items():

            def tick(so_far: int, before: int = before) -> None:
                progress(before + so_far, total)

            worker(piece, path, tick)
            before += piece.size
        return
    assert read is not None
    hub_sets = pack_hub_sets({(piece.path, piece.streaming) for piece in left.values() if piece.kind == "hub"})
    pool = ProcessPoolExecutor(workers, context, start_worker, (spec, read, hub_sets))
    try:
        with _main_not_imported():  # all workers start with the first submission
            waiting = {pool.submit(work, piece, path) for path, piece in left.items()}
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
            for job in done:
                job.result()
            progress(before + read.value, total)
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended without an error message, probably because memory ran out; lower data.workers and "
            "repeat the command, which resumes"
        ) from None
    finally:
        running = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        # At the end the workers are idle. After an error or Ctrl-C none of them may continue to
        # write.
        for process in running:
            process.terminate()


@contextlib.contextmanager
def _main_not_imported() -> Iterator[None]:
    """Have new processes not import the program that runs: a user's script may start its work without a guard."""
    main = sys.modules["__main__"]
    before = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in before:
        setattr(main, name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(main, name, value)
