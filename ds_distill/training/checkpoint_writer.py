"""Checkpoints written in the background: training continues as soon as a rank's part is in memory.

Each rank writes, sums and syncs its own files, and one rename on the first rank publishes them
together, so a checkpoint is complete or absent.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from ds_distill.distributed.process_group import all_gather_object, broadcast_object, run_on_rank0
from ds_distill.training.checkpoint import (
    CHUNK,
    FROZEN,
    MANIFEST,
    check_room,
    list_checkpoints,
    optimizer_package,
    shape_of,
)
from ds_distill.training.engine import Engine
from ds_distill.training.trusted import close_to_others
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import remove, sync
from ds_distill.utils.progress import note_progress
from ds_distill.utils.resources import explain_disk_full

Facts = dict[str, tuple[int, int]]  # by file name, the size in bytes and the CRC-32


class Saved(NamedTuple):
    """A published checkpoint: its folder, its optimizer step, its size, and the seconds from begin to rename."""

    path: Path
    step: int
    bytes: int
    seconds: float


class MemoryFile:
    """A file in memory that is written once, front to back, and then to a disk.

    It is a list of pieces, not one buffer that grows: each large tensor is copied once, into memory of
    its own.
    """

    def __init__(self, content: bytes | None = None):
        self._pieces: list[bytes] = [] if content is None else [content]

    def write(self, data: bytes | memoryview) -> int:
        """Append a copy of `data`; return its length in bytes."""
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing; torch.save calls it."""

    def move_to(self, path: Path) -> tuple[int, int]:
        """Write the content to `path` and have the disk keep it, freeing memory piece by piece; return (bytes, CRC-32).

        Writing, summing and syncing release the GIL.
        """
        size, crc = 0, 0
        self._pieces.reverse()
        with open(path, "wb", buffering=0) as stream:
            while self._pieces:
                piece = memoryview(self._pieces.pop())
                for start in range(0, len(piece), CHUNK):
                    chunk = piece[start : start + CHUNK]
                    size, crc = size + len(chunk), zlib.crc32(chunk, crc)
                    while chunk:
                        chunk = chunk[stream.write(chunk) :]
                    note_progress()
            os.fsync(stream.fileno())
        return size, crc


class MemoryCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's interface to storage, which keeps the files that this rank saves in memory.

    The training thread serializes, at little more than the time of a copy, and in the background only
    bytes are written. Serializing there would hold the GIL, and so the training's kernel launches, for
    up to half a second (`python -m benchmarks.training.checkpoint`). DeepSpeed's own decoupled writer
    is a process that gets the live tensors through shared memory, and its fast one needs a compiled extension.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.files: dict[Path, MemoryFile] = {}

    def save(self, state_dict: Any, path: str) -> None:
        """Serialize what DeepSpeed saves as `path`, as torch.save does."""
        file = self.files[Path(path)] = MemoryFile()
        # the manifest has a checksum of each file
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(state_dict, file)  # type: ignore[arg-type]  # write and flush are all it calls
        finally:
            torch.serialization.set_crc32_options(before)

    def take(self) -> dict[Path, MemoryFile]:
        """Return the files, and keep them no longer."""
        files, self.files = self.files, {}
        return files


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time.

    `begin` takes a snapshot, and a thread on each rank writes it. When all ranks have written, which
    the caller finds out from `is_written`, `publish` publishes the checkpoint in a thread of the first
    rank. `wait` does what is left and returns when nothing is left to do in the background.
    """

    def __init__(self, engine: Engine, folder: Path, keep: int):
        """Have the engine save through this writer.

        Args:
            engine: The engine.
            folder: The folder of the checkpoints.
            keep: How many checkpoints to keep.
        """
        self.folder, self.keep = folder, keep
        self._is_first = torch.distributed.get_rank() == 0
        self.use(engine)
        self._writing: Future[Facts] | None = None
        self._publishing: Future[Saved | None] | None = None
        self._manifest: dict[str, Any] = {}
        self._began = 0.0

    def use(self, engine: Engine) -> None:
        """Have an engine save through this writer, in place of one before; nothing may be left in the background."""
        self.engine, self._memory = engine, MemoryCheckpointEngine(engine.deepspeed._config)
        engine.deepspeed.checkpoint_engine = self._memory

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Collective: take a snapshot and begin to write it, after the checkpoint before it is published.

        Args:
            step: The optimizer step.
            state: What resuming needs beside the engine.

        Raises:
            UserError: There is no room, or the checkpoint before could not be written. Earlier
                checkpoints stay as they are.
        """
        self.wait()
        self._began = time.perf_counter()
        partial = self.folder / ".partial"

        def make_partial() -> None:
            remove(partial)
            partial.mkdir(parents=True)

        run_on_rank0(make_partial)
        check_room(self.engine, self.folder)
        with explain_disk_full(self.folder):
            self.engine.deepspeed.save_checkpoint(
                str(partial), tag="state", client_state={**state, "step": step}, save_latest=False
            )
        files = self._memory.take()
        if self.engine.frozen_weights and self._is_first:
            files[partial / "state" / FROZEN] = MemoryFile(safetensors.torch.save(self.engine.frozen_weights))
        self._manifest = {
            "step": step,
            "shape": shape_of(self.engine),
            "optimizer": optimizer_package(self.engine),
            "groups": self.engine.parameter_names,
            "frozen": self.engine.frozen_names,
            "versions": {package: version(package) for package in ("torch", "deepspeed", "transformers")},
        }
        self._writing = _in_background(lambda: self._write(files))

    @property
    def is_written(self) -> bool:
        """Whether this rank has written its files of a checkpoint that is not being published yet."""
        return self._writing is not None and self._writing.done() and not self._writing.exception()

    @property
    def has_failed(self) -> bool:
        """Whether this rank's work in the background has failed; `wait` then raises its error on every rank."""
        job = self._publishing if self._writing is None else self._writing
        return job is not None and job.done() and job.exception() is not None

    def publish(self) -> None:
        """Collective: begin to publish the checkpoint, once all ranks have written their files.

        Raises:
            UserError: A rank could not write its files.
        """
        if self._writing is None:
            return
        outcomes = all_gather_object(_outcome(self._writing))
        error, self._writing = self._writing.exception(), None
        self._raise(error, [problem for problem, _ in outcomes])
        files = {name: facts for _, part in outcomes for name, facts in part.items()}
        self._publishing = _in_background(lambda: self._publish(files) if self._is_first else None)

    def published(self) -> Saved | None:
        """Return the checkpoint that was last published, on the first rank; None before that, and on other ranks."""
        job = self._publishing
        return job.result() if job is not None and job.done() and not job.exception() else None

    def wait(self) -> Saved | None:
        """Collective: wait until nothing is left to do in the background, and return what `published` returns.

        Raises:
            UserError: The checkpoint could not be written or published. Earlier ones stay as they are.
        """
        self.publish()
        if self._publishing is None:
            return None
        problem, _ = broadcast_object(_outcome(self._publishing))
        error = self._publishing.exception()
        if problem:
            self._publishing = None
        self._raise(error, [problem])
        return self.published()

    def _raise(self, error: BaseException | None, problems: list[str | None]) -> None:
        """Raise this rank's error where it is no UserError, else the first rank's problem as one.

        What has been written of the checkpoint is removed: other files may lack its room.
        """
        if self._is_first and any(problems):
            _remove_surplus(self.folder / ".partial")
        if error is not None and not isinstance(error, UserError):
            raise error
        for problem in filter(None, problems):
            raise UserError(problem)

    def _write(self, files: dict[Path, MemoryFile]) -> Facts:
        facts = {}
        with explain_disk_full(self.folder):
            while files:
                path, file = files.popitem()
                facts[path.name] = file.move_to(path)
                close_to_others(path)
        return facts

    def _publish(self, files: Facts) -> Saved:
        step, partial = self._manifest["step"], self.folder / ".partial"
        final = self.folder / f"step-{step:09d}"
        text = json.dumps(self._manifest | {"files": dict(sorted(files.items()))}, indent=1) + "\n"
        with explain_disk_full(self.folder):
            MemoryFile(text.encode()).move_to(partial / "state" / MANIFEST)
        for path in (partial / "state" / MANIFEST, partial / "state"):
            close_to_others(path)
        sync(partial / "state")
        remove(final)
        os.replace(partial / "state", final)
        sync(self.folder)  # the rename itself must survive a power cut
        seconds = time.perf_counter() - self._began
        _remove_surplus(partial)  # DeepSpeed leaves its conversion script in it
        # a checkpoint that somebody has moved elsewhere and linked to stays
        own = [path for path in list_checkpoints(self.folder).values() if not path.is_symlink()]
        for old in own[: -self.keep]:
            _remove_surplus(old)
        return Saved(final, step, sum(size for size, _ in files.values()), seconds)


def save(engine: Engine, folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Collective: write and publish a checkpoint, and return its folder; see `CheckpointWriter`."""
    writer = CheckpointWriter(engine, folder, keep)
    writer.begin(step, state)
    writer.wait()
    return folder / f"step-{step:09d}"


def _in_background(job: Callable[[], Any]) -> Future:
    """Run `job` in a thread that does not keep the process from ending; return its future."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(job())
        except BaseException as error:  # whatever it is, the main thread must not wait forever
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _outcome(job: Future) -> tuple[str | None, Any]:
    """Wait for `job`; return (what was wrong, or None; its result, or nothing)."""
    error = job.exception()
    if error is None:
        return None, job.result()
    rank = torch.distributed.get_rank()
    return str(error) if isinstance(error, UserError) else f"rank {rank} could not write a checkpoint: {error!r}", {}


def _remove_surplus(path: Path) -> None:
    """Remove what is not needed any more, or report that it stays: the run continues."""
    try:
        remove(path)
    except OSError as error:
        log(f"{error.filename or path}: {error.strerror}; {path} is not needed any more, and is left")
