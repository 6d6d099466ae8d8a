"""Preparation of a corpus: many workers turn it into shards of token sequences on disk.

The prepared folder is complete or absent, memory use is flat, and an interrupted run resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ds_distill.data.accounting import Accounts
from ds_distill.data.content import content_fingerprint
from ds_distill.data.packing import Packer
from ds_distill.data.shards import INDEX
from ds_distill.data.sources import WorkUnit, corpus_identity, split_inputs
from ds_distill.data.tokenizer import plain_backend, save_tokenizer, special_ids, tokenizer_fingerprint, vocabulary_size
from ds_distill.data.worker import SPLITS, Format, PieceWorker
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.locks import try_lock

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

MODES = ("packed", "lines")
REPORT_VERSION = 2  # version of the report that a finished piece writes


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

    It writes one shard per piece and split (NAME.bin, NAME.idx), token_counts.npy (int64 [V], of
    the train split), tokenizer/ and manifest.json into a sibling folder, which takes the name
    `output` once it is complete. After an interruption the same call keeps the finished pieces and
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
    form = Format(
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
        _resume_or_reset(building, pieces, form)
        _tokenize(pieces, building, form, workers or cores(), progress)
        manifest = _assemble(inputs, pieces, content, building, form, tokenizer)
        _publish(building / "data", output)
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


def _resume_or_reset(building: Path, pieces: list[WorkUnit], form: Format) -> None:
    """Keep the finished pieces of an interrupted call with the same sources and settings.

    The pieces of any other call are removed.
    """
    state = {p.path: [os.stat(p.path).st_size, os.stat(p.path).st_mtime_ns] for p in pieces if p.kind != "hub"}
    plan = json.dumps([REPORT_VERSION, [asdict(piece) for piece in pieces], state, asdict(form)])
    file = building / "plan.json"
    if not file.is_file() or file.read_text(encoding="utf-8") != plan:
        for old in building.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        file.write_text(plan, encoding="utf-8")


# --- pieces, by many workers ---------------------------------------------------------------------------------------


def _folder(building: Path, number: int) -> Path:
    return building / f"piece-{number:05d}"


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
    pieces: list[WorkUnit], building: Path, form: Format, workers: int, progress: Callable[[int, int], None]
) -> None:
    left = [number for number in range(len(pieces)) if not _folder(building, number).is_dir()]
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
        work = PieceWorker(form)
        for number in left:

            def tick(so_far: int, before: int = before) -> None:
                progress(before + so_far, total)

            work(pieces[number], _folder(building, number), tick)
            before += pieces[number].size
        return
    assert read is not None
    pool = ProcessPoolExecutor(workers, context, _start_worker, (form, read))
    try:
        with _main_not_imported():  # all workers start with the first submission
            waiting = {pool.submit(_work, pieces[number], _folder(building, number)) for number in left}
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


# A worker's process sets these.
_worker: PieceWorker
_read: Synchronized[int]  # bytes that all workers have read


def _start_worker(form: Format, read: Synchronized[int]) -> None:
    global _worker, _read
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one answers it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _worker, _read = PieceWorker(form), read


def _work(piece: WorkUnit, folder: Path) -> None:
    reported = 0

    def tick(so_far: int) -> None:
        nonlocal reported
        with _read.get_lock():
            _read.value += so_far - reported
        reported = so_far

    _worker(piece, folder, tick)
    tick(piece.size)


# --- assembly ------------------------------------------------------------------------------------------------------


def _assemble(
    inputs: list[str], pieces: list[WorkUnit], content: str, building: Path, form: Format, tokenizer
) -> dict[str, Any]:
    """Build the folder building/data from the finished pieces and return its manifest."""
    data = building / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    counts, accounts, hashes = np.zeros(form.vocab_size, np.int64), Accounts(), []
    maskable: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    shards: dict[str, list[dict]] = {split: [] for split in SPLITS}
    sources = [
        {"input": given, "documents": 0, "sequences": dict.fromkeys(SPLITS, 0), "tokens": dict.fromkeys(SPLITS, 0)}
        for given in inputs
    ]
    leftovers: dict[tuple[int, str], list[np.ndarray]] = {}
    for number, piece in enumerate(pieces):
        folder = _folder(building, number)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        accounts.add(piece.path, piece.kind, report)
        sources[piece.source]["documents"] += sum(report["found"].get(f"documents_{split}", 0) for split in SPLITS)
        with np.load(folder / "arrays.npz") as arrays:
            counts += arrays["counts"]
            hashes.append(arrays["hashes"])
            for split in SPLITS:
                if len(arrays[split]):
                    leftovers.setdefault((piece.source, split), []).append(arrays[split])
        for split in SPLITS:
            shard = report["shards"][split]
            maskable[split].update({int(n): sequences for n, sequences in shard.pop("maskable").items()})
            if shard["sequences"]:
                name = f"{split}-{number:05d}"
                for suffix in (".bin", ".idx"):
                    _link(folder / f"{split}{suffix}", data / f"{name}{suffix}")
                shards[split].append(shard | {"file": name, "source": piece.source})
    for (source, split), parts in sorted(leftovers.items()):
        writer = form.writer(data / f"{split}-rest-{source}")
        packer = Packer(writer, form.sequence_length, form.cls_id, form.sep_id)
        for part in parts:
            packer.add(part)
        packer.finish()
        shard = writer.close() | {"source": source}
        maskable[split].update(shard.pop("maskable"))
        shards[split].append(shard)
        if split == "train":
            counts += writer.counts
    remarks = accounts.sentences()
    if not any(shards.values()):
        reasons = "; ".join(remarks)
        raise UserError(
            f"{', '.join(inputs)}: the corpus is empty, because no document yields a token; "
            f"{reasons or 'give files that contain text'}"
        )
    _ensure_nonempty_splits(data, shards, counts, maskable, form)
    for split in SPLITS:
        for shard in shards[split]:
            sources[shard["source"]]["sequences"][split] += shard["sequences"]
            sources[shard["source"]]["tokens"][split] += shard["tokens"]
    all_hashes = np.concatenate(hashes)
    statistics = accounts.statistics()
    statistics["duplicate"] = len(all_hashes) - len(np.unique(all_hashes))
    known_tokens = counts.sum() - counts[[i for i in form.special_ids if i != form.unknown_id]].sum()
    np.save(data / "token_counts.npy", counts)
    save_tokenizer(tokenizer, data / "tokenizer")
    digest = hashlib.sha256("".join(shard["sha256"] for split in SPLITS for shard in shards[split]).encode())
    digest.update(tokenizer_fingerprint(tokenizer).encode())
    manifest = {
        "mode": form.mode,
        "sequence_length": form.sequence_length,
        "vocab_size": form.vocab_size,
        "dtype": form.dtype.name,
        "blocks": {split: sum(shard["sequences"] for shard in shards[split]) for split in SPLITS},
        "real_tokens": {split: sum(shard["tokens"] for shard in shards[split]) for split in SPLITS},
        "documents": {split: statistics.pop(f"documents_{split}", 0) for split in SPLITS},
        "found": {key: statistics[key] for key in sorted(statistics)},
        "characters": accounts.characters(),
        "remarks": remarks,
        "maskable": {split: {str(n): maskable[split][n] for n in sorted(maskable[split])} for split in SPLITS},
        "unknown_share": float(counts[form.unknown_id] / max(1, known_tokens)) if form.unknown_id is not None else 0.0,
        "corpus": corpus_identity(inputs, pieces),
        "content": content,
        "seed": form.seed,
        "heldout_fraction": form.heldout_fraction,
        **{f"{kind}_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "cls", "sep", "mask")},
        "special_ids": list(form.special_ids),
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "sources": sources,
        "shards": shards,
        "fingerprint": digest.hexdigest(),
    }
    (data / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return manifest


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:  # The file system has no hard links.
        shutil.copyfile(file, name)


def _ensure_nonempty_splits(
    data: Path, shards: dict[str, list[dict]], counts: np.ndarray, maskable: dict[str, Counter], form: Format
) -> None:
    """Move the last sequence into an empty split.

    A small corpus may leave one split empty. The other then gives its last sequence, if it has two.
    """
    for empty, full in (("heldout", "train"), ("train", "heldout")):
        wanted = 0 < form.heldout_fraction < 1 and not shards[empty]
        if not wanted or sum(shard["sequences"] for shard in shards[full]) < 2:
            continue
        last = shards[full].pop()
        stem = data / last["file"]
        rows = np.fromfile(stem.with_suffix(".idx"), INDEX)
        ids = np.fromfile(stem.with_suffix(".bin"), form.dtype)
        sequences = [ids[row["start"] : row["start"] + row["length"]] for row in rows]
        for suffix in (".bin", ".idx"):
            stem.with_suffix(suffix).unlink()
        for split, name, part in ((full, last["file"], sequences[:-1]), (empty, f"{empty}-last", sequences[-1:])):
            if part:
                writer = form.writer(data / name)
                writer.add(part)
                shard = writer.close() | {"source": last["source"]}
                del shard["maskable"]
                shards[split].append(shard)
        maskable[full] -= Counter({int(rows[-1]["maskable"]): 1})
        maskable[empty][int(rows[-1]["maskable"])] += 1
        counts += (1 if empty == "train" else -1) * np.bincount(sequences[-1], minlength=len(counts))


def _publish(finished: Path, output: Path) -> None:
    """Give the finished folder its name; earlier prepared data stays there until the moment before."""
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    finished.rename(output)
    shutil.rmtree(old, ignore_errors=True)
