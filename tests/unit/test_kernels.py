"""The compiled optimizers' build: who holds it."""

import multiprocessing
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


def test_one_builds_and_the_others_wait(folder):
    def build(number: int) -> None:
        with kernels._one_builds(folder):
            before = list(folder.glob("at-it-*"))
            (folder / f"at-it-{number}").touch()
            time.sleep(0.3)
            (folder / f"{'together' if before else 'alone'}-{number}").touch()
            (folder / f"at-it-{number}").unlink()

    several = [multiprocessing.get_context("fork").Process(target=build, args=(number,)) for number in range(3)]
    for process in several:
        process.start()
    for process in several:
        process.join(30)
    assert len(list(folder.glob("alone-*"))) == 3 and not list(folder.glob("together-*"))


def test_what_is_built_is_only_loaded(folder):
    (folder / "fused_adam.so").touch()
    with kernels._one_builds(folder):
        assert not (folder / "builder").exists()
