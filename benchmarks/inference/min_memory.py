"""Find the least memory in which a model runs, as on a small device: one thread and a limit on allocations.

The limit applies to private writable memory (RLIMIT_DATA): the runtime's own memory and the weights
that it reads in. Files that are only mapped do not count, as on a device that maps them from flash.
Each try is a process of its own. It sets the limit, imports the runtime, loads the file and reads
one sequence.
"""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable

from benchmarks.inference.backends import Row
from ds_distill.utils.console import spinner

MEGABYTE = 2**20


def least_megabytes(
    row: Row, length: int, *, most: int = 4096, step: int = 8, tries: Callable | None = None
) -> int | None:
    """Return the smallest limit in MB under which `row` reads a sequence of `length` tokens.

    Args:
        row: The model and backend.
        length: The number of tokens.
        most: The largest limit to try, in MB.
        step: The limit is a multiple of this many MB.
        tries: A function from (row, length, megabytes) to whether it ran; by default, it starts a
            new process.

    Returns:
        The limit, or None if even `most` is too little.
    """
    tries = tries or runs_within
    low, high = 0, most // step
    with spinner(f"least memory of {row.name}"):
        if not tries(row, length, high * step):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if tries(row, length, middle * step) else (middle, high)
    return high * step


def runs_within(row: Row, length: int, megabytes: int) -> bool:
    """Return whether a new process reads a sequence of `length` tokens within `megabytes`."""
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:  # written here, so the process below may unpickle it
        pickle.dump((row, length, megabytes), file)
        file.flush()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.inference.min_memory", file.name],
                capture_output=True,
                timeout=1200,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0 and done.stdout.strip().endswith(b"ran")


def main() -> int:
    with open(sys.argv[1], "rb") as file:
        row, length, megabytes = pickle.load(file)
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes * MEGABYTE,) * 2)
    from benchmarks.inference.backends import BACKENDS, make_inputs

    names = (row.files / "inputs.txt").read_text(encoding="utf-8").split()
    run = BACKENDS[row.backend].load(row)
    run({name: value for name, value in make_inputs([length]).items() if name in names})
    print("ran")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
