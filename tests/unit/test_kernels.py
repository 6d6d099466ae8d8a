"""The compiled optimizers' build: who holds it."""

import contextlib
import multiprocessing
import os
import signal
import socket
import time

import pytest

from ds_distill.training import kernels


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "_build_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("host, age, gone", [(socket.gethostname(), 0, True), ("another", 0, False), ("another", kernels.STALE_SECONDS + 1, True)])
def test_the_lock_of_a_build_that_was_killed_is_nobodys(folder, monkeypatch, host, age, gone):
    (folder / "builder").write_text(host)
    (folder / "lock").touch()
    now = time.time()
    monkeypatch.setattr(kernels.time, "time", lambda: now + age)
    with kernels._one_builds(folder):
        assert (folder / "lock").exists() != gone and (folder / "builder").read_text() == socket.gethostname()


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """The files of processes that have found the lock taken."""

    @contextlib.contextmanager
    def alive(what):
        (tmp_path / f"waits-{os.getpid()}").touch()
        yield

    monkeypatch.setattr(kernels, "alive", alive)
    return lambda: list(tmp_path.glob("waits-*"))


def exits_of(job, count: int) -> list[int]:
    several = [multiprocessing.get_context("fork").Process(target=job) for _ in range(count)]
    for process in several:
        process.start()
    for process in several:
        process.join(60)
    return sorted(process.exitcode for process in several)


def until(condition) -> None:
    while not condition():
        time.sleep(0.01)


def test_one_builds_and_the_others_load(folder, waiting):
    def build() -> None:
        with kernels._one_builds(folder):
            until(lambda: len(waiting()) == 2)
            (folder / "at-it").touch(exist_ok=False)
            (folder / "fused_adam.so").touch()
            (folder / "at-it").unlink()

    assert exits_of(build, 3) == [0, 0, 0], "who had to wait has the lock alone"
    met = multiprocessing.get_context("fork").Barrier(3)

    def load() -> None:
        with kernels._one_builds(folder):
            met.wait(60)

    assert exits_of(load, 3) == [0, 0, 0], "what is built is loaded by all at once"


def test_a_build_that_failed_is_not_tried_by_every_rank(folder, waiting):
    def build() -> None:
        try:
            with kernels._one_builds(folder):
                until(lambda: len(waiting()) == 2)
                raise RuntimeError("no such header")
        except RuntimeError as error:
            raise SystemExit({"no such header": 0, "another process could not compile it: no such header": 3}.get(str(error), 1)) from None

    assert exits_of(build, 3) == [0, 3, 3]
    with kernels._one_builds(folder):
        assert (folder / "builder").read_text() == socket.gethostname(), "who did not wait for it tries again"


def test_a_build_that_was_killed_before_it_began_did_not_fail(folder, waiting):
    def build() -> None:
        with kernels._one_builds(folder):
            if not (folder / "first").exists():
                (folder / "first").touch()
                until(lambda: len(waiting()) == 2)
                os.kill(os.getpid(), signal.SIGKILL)
            (folder / "fused_adam.so").touch()

    assert exits_of(build, 3) == [-signal.SIGKILL, 0, 0]


def test_a_live_loaders_lock_is_left_alone(folder, waiting):
    """torch's lock is there while a process loads, too: another must wait for it, and not take it for a dead one's."""
    (folder / "fused_adam.so").touch()
    (folder / "builder").write_text(socket.gethostname())

    def load() -> None:
        with kernels._one_builds(folder):
            (folder / "lock").touch()
            until(waiting)
            (folder / "lock").unlink()  # fails where another took it away

    loader = multiprocessing.get_context("fork").Process(target=load)
    loader.start()
    until((folder / "lock").exists)
    with kernels._one_builds(folder):
        assert not (folder / "lock").exists()
    loader.join(60)
    assert loader.exitcode == 0
