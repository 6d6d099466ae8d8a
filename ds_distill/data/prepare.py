"""Preparation of a corpus: many workers turn it into shards of token sequences on disk.

The prepared folder is complete or absent, memory use is flat, and an interrupted run resumes.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ds_distill.data.assemble import assemble, piece_folder
from ds_distill.data.fingerprint import content_fingerprint
from ds_distill.data.sources import WorkUnit, split_inputs
from ds_distill.data.token_files import MAX_LENGTH
from ds_distill.data.tokenizer import plain_backend, special_ids, vocabulary_size
from ds_distill.data.worker import EncodingSpec, PieceWorker
from ds_distill.data.worker_process import start_worker, work
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.locks import try_lock

MODES = ("packed", "lines")
REPORT_VERSION = 3  # version of the report that a finished piece writes


def prepare(
    inputs: list[str],
    tokenizer,
    output: Path,
    *,
    mode: str = "packed",
    sequence_length: int,
    heldout_fraction: float,
    seed: int,
    workers: int = 0,
    column: str = "text",
    streaming: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Tokenize the sources `inputs` into the folder `output` and return its manifest.

    It writes the files of `token_files`, token_counts.npy (int64 [V], of the train split),
    tokenizer/ and manifest.json into a sibling folder, which takes the name `output` once it is
    complete. The finished pieces lie there too until then, so the disk needs room for the tokens
    twice. After an interruption the same call keeps the finished pieces and
    continues with the others. The result does not depend on the number of workers.

    A document is held out by a hash of (seed, text) alone, so adding documents never moves others.
    Where that leaves one split empty and the other with two sequences or more, the last sequence
    changes sides.

    In the manifest, `characters` tells what became of every character that was read, and `remarks`
    holds what is worth a line to the user.

    Args:
        inputs: The sources; see `sources.split_inputs`.
        tokenizer: A fast tokenizer of transformers.
        output: The folder to write.
        mode: "packed" (full blocks) or "lines" (each line is a sequence).
        workers: Number of processes; 0 means one per core.
        progress: Called with the bytes read and the total bytes, which are 0 where a hub data set
            does not tell.

    Raises:
        UserError: If the corpus has no token, a setting is out of range, a file is damaged, or
            another process prepares the same folder.
    """
    output = Path(output)
    _check(output, tokenizer, mode, sequence_length, heldout_fraction)
    pieces = split_inputs(inputs, column=column, streaming=streaming)
    spec = EncodingSpec(
        plain_backend(tokenizer).to_str(),
        vocabulary_size(tokenizer),
        special_ids(tokenizer),
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.unk_token_id,
        mode,
        sequence_length,
        heldout_fraction,
        seed,
    )
    content = content_fingerprint(pieces)
    building = output.parent / f".{output.name}.building"
    building.mkdir(parents=True, exist_ok=True)
    with (building / "lock").open("w", encoding="utf-8") as lock:
        try_lock(lock, output, lambda: "another process")
        _resume_or_reset(building, pieces, spec)
        _tokenize(pieces, building, spec, workers or cores(), progress)
        manifest = assemble(inputs, pieces, content, building, spec, tokenizer)
        publish(building / "data", output)
        shutil.rmtree(building)
    return manifest


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(output: Path, tokenizer, mode: str, sequence_length: int, heldout_fraction: float) -> None:
    if mode not in MODES:
        raise UserError(f"data.mode = {mode}: must be {' or '.join(MODES)}")
    if sequence_length < 8:
        raise UserError(f"data.sequence_length = {sequence_length}: must be at least 8 ([CLS] and [SEP] take two)")
    if sequence_length > MAX_LENGTH:
        raise UserError(f"data.sequence_length = {sequence_length}: must be at most {MAX_LENGTH}")
    if not 0 <= heldout_fraction <= 1:
        raise UserError(f"data.heldout_fraction = {heldout_fraction}: must be between 0 and 1")
    others = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id}
    if tokenizer.pad_token_id is None or None in others or tokenizer.pad_token_id in others:
        raise UserError(
            "the tokenizer must have [CLS], [SEP] and mask tokens, and a padding token that is none of them; use the "
            "tokenizer of a BERT-like encoder"
        )
    if output.exists() and not (output.is_dir() and ((output / "manifest.json").exists() or not any(output.iterdir()))):
        raise UserError(
            f"{output}: already exists and is not prepared data; choose another output folder, or remove it"
        )


def _resume_or_reset(building: Path, pieces: list[WorkUnit], spec: EncodingSpec) -> None:
    """Keep the finished pieces of an interrupted call with the same sources and settings.

    The pieces of any other call are removed.
    """
    state = {p.path: [os.stat(p.path).st_size, os.stat(p.path).st_mtime_ns] for p in pieces if p.kind != "hub"}
    plan = json.dumps([REPORT_VERSION, [asdict(piece) for piece in pieces], state, asdict(spec)])
    file = building / "plan.json"
    if not file.is_file() or file.read_text(encoding="utf-8") != plan:
        for old in building.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        file.write_text(plan, encoding="utf-8")


# --- pieces, by many workers ---------------------------------------------------------------------------------------


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


def _tokenize(
    pieces: list[WorkUnit], building: Path, spec: EncodingSpec, workers: int, progress: Callable[[int, int], None]
) -> None:
    left = [number for number in range(len(pieces)) if not piece_folder(building, number).is_dir()]
    total = sum(piece.size for piece in pieces)
    before = total - sum(pieces[number].size for number in left)
    progress(before, total)
    # The workers are spawned, not forked: the calling process may hold threads and a GPU.
    context, workers = multiprocessing.get_context("spawn"), min(workers, len(left))
    try:
        read = context.Value("q", 0) if workers > 1 else None
    except OSError as error:
        log(f"{error.filename or 'shared memory'}: {error.strerror}; preparing with one worker instead of {workers}")
        workers = 1
    if workers <= 1:
        worker = PieceWorker(spec)
        for number in left:

            def tick(so_far: int, before: int = before) -> None:
                progress(before + so_far, total)

            worker(pieces[number], piece_folder(building, number), tick)
            before += pieces[number].size
        return
    assert read is not None
    pool = ProcessPoolExecutor(workers, context, start_worker, (spec, read))
    try:
        with _main_not_imported():  # all workers start with the first submission
            waiting = {pool.submit(work, pieces[number], piece_folder(building, number)) for number in left}
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


# --- assembly ------------------------------------------------------------------------------------------------------


def publish(finished: Path, output: Path) -> None:
    """Give the finished folder its name; earlier prepared data stays there until the moment before."""
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    finished.rename(output)
    shutil.rmtree(old, ignore_errors=True)
