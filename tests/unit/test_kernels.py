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


def together(folder, count: int, before=lambda: None, after=lambda: None) -> list[str]:
    """What several processes saw that are within the lock for a while: "alone", "together", or the error's words."""

    def build(number: int) -> None:
        try:
            with kernels._one_builds(folder):
                before()
                others = list(folder.glob("at-it-*"))
                (folder / f"at-it-{number}").touch()
                time.sleep(0.3)
                others += [file for file in folder.glob("at-it-*") if file.name != f"at-it-{number}"]
                (folder / f"at-it-{number}").unlink()
                after()
                (folder / f"said-{number}").write_text("together" if others else "alone")
        except RuntimeError as error:
            (folder / f"said-{number}").write_text(str(error))

    several = [multiprocessing.get_context("fork").Process(target=build, args=(number,)) for number in range(count)]
    for process in several:
        process.start()
    for process in several:
        process.join(30)
    return sorted(file.read_text() for file in folder.glob("said-*"))


def test_one_builds_and_the_others_load(folder):
    said = together(folder, 3, after=(folder / "fused_adam.so").touch)
    assert said == ["alone", "alone", "alone"], "who had to wait has the lock alone"
    assert together(folder, 3) == ["together"] * 3


def test_a_build_that_failed_is_not_tried_by_every_rank(folder):
    assert together(folder, 3) == ["alone", *["another process could not compile it"] * 2]


def test_a_live_loaders_lock_is_left_alone(folder):
    """torch's lock is there while a process loads, too: another must wait for it, and not take it for a dead one's."""
    (folder / "fused_adam.so").touch()
    (folder / "builder").write_text(socket.gethostname())

    def load() -> None:
        with kernels._one_builds(folder):
            (folder / "lock").touch()
            time.sleep(0.6)
            (folder / "lock").unlink()  # fails where another took it away

    loader = multiprocessing.get_context("fork").Process(target=load)
    loader.start()
    while not (folder / "lock").exists():
        time.sleep(0.01)
    with kernels._one_builds(folder):
        assert not (folder / "lock").exists()
    loader.join(30)
    assert loader.exitcode == 0
