"""Test what makes batches ahead of time: a thread and a process give the same, and end with what uses them."""

import contextlib
import gc
import itertools
import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import BatchLoader
from ds_distill.data.masking import Masker
from ds_distill.data.whole_words import SPACED, Words
from ds_distill.utils.errors import UserError
from tests.patience import has_ended, wait_until
from tests.start import ROOT, environment_of
from tests.unit.data.test_loader import LENGTH, MASK, SPECIAL, VOCAB, build_store, make_store, order, ragged_store

BOTH = pytest.mark.parametrize("process", [False, True], ids=["thread", "process"])


def workers() -> list[psutil.Process]:
    """Return the processes that make batches for this one."""
    return [child for child in psutil.Process().children() if "ds_distill.data.batch_worker" in words_of(child)]


def words_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def take(loader, first, last, process):
    return list(loader.prefetch(first, last, process=process))


def assert_same(steps, loader):
    for step, micro, counts in steps:
        assert counts == loader.counts(step)
        for one, two in zip(micro, loader.micro_batches(step), strict=True):
            for name in vars(two):
                a, b = getattr(one, name), getattr(two, name)
                assert a is b is None or (a.dtype == b.dtype and torch.equal(a, b)), name


@BOTH
def test_the_same_steps_come_in_order(process):
    """The arrays are copied: later steps, which reuse the shared memory, do not change earlier ones."""
    loader = order(make_store(), document_masking=True)
    steps = take(loader, 3, 9, process)
    assert [step for step, _, _ in steps] == [3, 4, 5, 6, 7, 8]
    assert_same(steps, loader)
    assert steps[0][1][0].cu_seqlens is not None
    assert loader.seconds_waited > 0 and not workers()


def test_batches_of_all_kinds_pass_through_the_process():
    store = ragged_store(300)
    words = Words(np.full(VOCAB, SPACED, np.uint8))
    masker = Masker(store.token_counts, SPECIAL, MASK, VOCAB, 5, words=words)
    loader = BatchLoader(
        store, masker, seed=5, global_batch_size=24, micro_batch_size=4, rank=1, world_size=2, by_length=True
    )
    steps = take(loader, 10, 14, process=True)
    assert_same(steps, loader)
    assert len({micro[0].input_ids.shape for _, micro, _ in steps}) > 1
    assert any(batch.token_mask is not None for _, micro, _ in steps for batch in micro)


@BOTH
def test_an_error_is_raised_after_the_steps_that_were_made_before_it(process):
    store = make_store()
    loader = order(store)
    broken = loader.get_indices(2)[0]
    rows = np.fromfile(store.path / "train.rows", np.uint8).reshape(len(store), -1)
    rows[broken, -1] ^= 1  # the checksum
    rows.tofile(store.path / "train.rows")
    loader = order(TokenDataset.open(store.path))
    steps = loader.prefetch(0, 5, process=process)
    assert [next(steps)[0], next(steps)[0]] == [0, 1]
    with pytest.raises(UserError, match=f"damaged at byte .*sequence {broken}\\)"):
        next(steps)
    with pytest.raises(ValueError, match="step -1"):
        take(loader, -1, 3, process)
    assert not workers()


def test_a_sequence_longer_than_the_manifest_says_is_an_error():
    store = build_store([[np.full(3 * LENGTH, 7)] * 20])
    with pytest.raises(UserError, match=r"longer than the sequence_length of the prepared data's manifest\.json"):
        take(order(store, batch=8, micro=8, document_masking=True), 0, 1, process=True)


def test_files_that_are_cut_while_they_are_read_are_named():
    store = make_store()
    steps = order(store).prefetch(0, 10**9, process=True)
    next(steps)
    for file in store.path.glob("*.bin"):
        os.truncate(file, 0)
    with pytest.raises(UserError, match="ended by SIGBUS, because a file of the prepared tokens was cut"):
        list(steps)


@BOTH
def test_closing_stops_what_makes_batches(process):
    loader = order(make_store())
    steps = loader.prefetch(0, 10**9, process=process)
    next(steps)
    assert len(workers()) == process
    steps.close()
    assert not workers()
    del steps
    gc.collect()
    assert not [name for name in map(_target, os.listdir("/proc/self/fd")) if name.startswith("/memfd:batches")]


def _target(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


@pytest.mark.promise("A killed process that makes batches ends the run in one sentence")
def test_a_killed_process_is_told_in_one_sentence():
    steps = order(make_store()).prefetch(0, 10**9, process=True)
    next(steps)
    (worker,) = workers()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the run answers, and needs batches until then
        worker.send_signal(number)
    for _ in itertools.islice(steps, 10):
        pass
    worker.kill()
    with pytest.raises(UserError, match="makes the batches was ended by SIGKILL, probably because memory ran out; the"):
        list(steps)


PARENT = """
import os, sys, time
from tests.unit.data.test_prefetch import make_store, order, workers
steps = order(make_store()).prefetch(0, 10**9, process=True)
next(steps)
if not os.fork():  # a fork keeps the socket open, as the processes of a library may
    time.sleep(600)
print(workers()[0].pid, flush=True)
time.sleep(600)
"""


@pytest.mark.promise("A killed run leaves neither processes nor shared memory of its loader behind")
def test_the_process_ends_with_a_killed_parent_and_nothing_is_left():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment_of(), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    worker = psutil.Process(json.loads(parent.stdout.readline()))
    (fork,) = [child for child in psutil.Process(parent.pid).children() if child != worker]
    try:
        maps = {area.path for area in worker.memory_maps()}
        # memory without a name, of which the kernel keeps nothing once nobody maps it
        assert any(path.startswith("/memfd:batches") for path in maps)
        assert not any(path.startswith("/dev/shm") for path in maps)
        parent.kill()
        parent.wait()
        assert wait_until(lambda: has_ended(worker), [worker.pid, fork.pid]) is None
    finally:
        fork.kill()
