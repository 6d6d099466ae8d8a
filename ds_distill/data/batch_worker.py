"""The process that makes a run's batches: python -m ds_distill.data.batch_worker SOCKET MEMORY.

See `prefetch_process`, which starts it. It imports neither torch nor transformers, and ends with the process that
started it, however that one ends.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection

import numpy as np

from ds_distill.data.batch import BatchArrays
from ds_distill.data.prefetch_process import ALIGNMENT, SLOTS, Made, Place
from ds_distill.utils.errors import UserError
from ds_distill.utils.stop_signals import SIGNALS

LOOK = 1.0  # seconds between two looks for the parent


def main() -> None:
    """Make batches until the last step, an error, or the end of the parent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # They may reach all processes; the parent answers them.
    link, file = Connection(int(sys.argv[1])), int(sys.argv[2])
    parent = os.getppid()
    try:
        loader, first_step, last_step, slot_bytes = link.recv()
        memory = mmap.mmap(file, SLOTS * slot_bytes)
        os.close(file)
        try:
            for step in range(first_step, last_step):
                slot = _wait_for_slot(link, parent)
                places = _write(loader.micro_arrays(step), memory, slot * slot_bytes, slot_bytes)
                link.send(Made(step, slot, places, loader.counts(step)))
            link.send(None)
        except (EOFError, ConnectionError):
            raise
        except BaseException as error:  # Whatever the error is, the parent must not wait forever.
            link.send(_portable(error))
        while True:  # The parent may still have to read; it ends this process.
            _wait_for_slot(link, parent)
    except (EOFError, ConnectionError):
        pass  # The parent has ended.


def _wait_for_slot(link: Connection, parent: int) -> int:
    """Return the next slot that is given back; raise EOFError where the parent has ended."""
    while not link.poll(LOOK):
        if os.getppid() != parent:  # A fork of the parent may hold the link open.
            raise EOFError
    return link.recv()


def _write(batches: list[BatchArrays], memory: mmap.mmap, start: int, size: int) -> list[list[Place | None]]:
    """Copy arrays into the memory from `start` on; return the places of each batch's arrays."""
    places: list[list[Place | None]] = []
    offset = start
    for arrays in batches:
        places.append([])
        for array in arrays:
            if array is None:
                places[-1].append(None)
                continue
            if offset + array.nbytes > start + size:
                raise UserError(
                    "a sequence is longer than the sequence_length of the prepared data's manifest.json; prepare the "
                    "corpus again"
                )
            np.frombuffer(memory, array.dtype, array.size, offset)[:] = array.reshape(-1)
            places[-1].append(Place(offset, array.dtype.str, array.shape))
            offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return places


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent, with the place where it arose unless it is the user's to correct."""
    place = "".join(traceback.format_exception(error))
    try:
        if not isinstance(error, UserError):
            error.add_note(f"in the process that makes the batches:\n{place}")
        pickle.loads(pickle.dumps(error))
    except Exception:  # Errors of libraries may need arguments that pickle does not know.
        return RuntimeError(place)
    return error


if __name__ == "__main__":
    main()
