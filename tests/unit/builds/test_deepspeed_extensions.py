"""Whatever a killed build of DeepSpeed's extensions leaves behind, the next process builds or loads them."""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path

import pytest
from deepspeed.ops.op_builder.builder import OpBuilder

from ds_distill.builds import deepspeed_extensions

SOURCE = """
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "tiny_extension", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit_tiny_extension() { PyObject* m = PyModule_Create(&module); \
PyModule_AddIntConstant(m, "answer", 42); return m; }
"""


class TinyBuilder(OpBuilder):
    """An extension that compiles in a second, built by torch and ninja as DeepSpeed's are."""

    def __init__(self, source: Path):
        super().__init__(name="tiny_extension")
        self.source = source

    def absolute_name(self) -> str:
        return "deepspeed.ops.tiny_extension"

    def sources(self) -> list[str]:
        return [str(self.source)]


class Build:
    """A build environment whose compiler can be told to wait or to fail, and processes that load the extension."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, []
        (folder / "tiny.cpp").write_text(SOURCE)
        compiler = folder / "c++"
        compiler.write_text(
            f"""#!/bin/sh
[ "$1" = -c ] || [ "$1" = -MMD ] || exec c++ "$@"
echo $$ >>{folder}/compilers
while [ -e {folder}/wait ]; do sleep 0.02; done
[ ! -e {folder}/fail ] || {{ echo "no such header" >&2; exit 1; }}
exec c++ "$@"
"""
        )
        compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)

    def load(self) -> None:
        module = deepspeed_extensions.load_extension(TinyBuilder(self.folder / "tiny.cpp"))
        if module.answer != 42:
            raise SystemExit(4)

    def start(self):
        def work() -> None:
            os.setsid()
            try:
                self.load()
            except RuntimeError as error:
                raise SystemExit(3 if "another process could not compile it" in str(error) else 2) from None

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        self.processes.append(process)
        return process

    @property
    def compilers(self) -> int:
        file = self.folder / "compilers"
        return len(file.read_text().split()) if file.exists() else 0

    def until(self, condition) -> None:
        while not condition():
            assert any(process.is_alive() for process in self.processes), "it ended before"
            time.sleep(0.01)


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "environment"))
    one = Build(tmp_path)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    yield one
    (tmp_path / "wait").unlink(missing_ok=True)
    for process in one.processes:
        process.kill()
        process.join()


def ends(*processes) -> list[int]:
    for process in processes:
        process.join()
    return sorted(process.exitcode for process in processes)


@pytest.mark.parametrize("compiler_dies", [True, False], ids=["with its compiler", "alone"])
def test_a_killed_build_stops_nobody(build, compiler_dies):
    (build.folder / "wait").touch()
    killed = build.start()
    build.until(lambda: build.compilers == 1)
    os.kill(killed.pid, signal.SIGKILL)
    if compiler_dies:
        os.kill(int((build.folder / "compilers").read_text()), signal.SIGKILL)
    killed.join()
    next_one = build.start()
    build.until(lambda: build.compilers == 2)  # the second build does not wait for the dead one
    (build.folder / "wait").unlink()
    assert ends(next_one) == [0] and ends(build.start()) == [0]
    assert build.compilers == 2, "what is built is loaded"
    assert [path.name for path in deepspeed_extensions.extensions_folder().iterdir() if path.is_dir()] == [
        "tiny_extension"
    ]


def test_who_waits_takes_over_from_a_killed_build(build):
    (build.folder / "wait").touch()
    first = build.start()
    build.until(lambda: build.compilers == 1)
    others = [build.start(), build.start()]
    os.kill(first.pid, signal.SIGKILL)
    build.until(lambda: build.compilers == 2)
    (build.folder / "wait").unlink()
    assert ends(*others) == [0, 0] and build.compilers == 2


def test_one_builds_and_the_others_load(build):
    (build.folder / "wait").touch()
    several = [build.start() for _ in range(3)]
    build.until(lambda: build.compilers == 1)
    (build.folder / "wait").unlink()
    assert ends(*several) == [0, 0, 0] and build.compilers == 1


def test_who_waits_loads_what_is_built_while_the_lock_is_held(build):
    """Hundreds of ranks would else load it one after another."""
    (build.folder / "wait").touch()
    waiting = build.start()
    build.until(lambda: build.compilers == 1)
    (build.folder / "wait").unlink()
    assert ends(waiting) == [0]
    library = deepspeed_extensions._library("tiny_extension")
    built = library.read_bytes()
    library.unlink()
    with open(deepspeed_extensions.extensions_folder() / "tiny_extension.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = build.start()
        time.sleep(1)
        assert waiting.is_alive()
        partial = library.with_suffix(".partial")
        partial.write_bytes(built)
        partial.rename(library)
        assert ends(waiting) == [0] and build.compilers == 1


def test_a_build_that_failed_is_not_tried_by_every_rank_but_by_the_next_run(build, monkeypatch):
    waiting = build.folder / "waiting"

    @contextlib.contextmanager
    def alive(what):
        if what.startswith("waiting"):
            with open(waiting, "a") as file:
                file.write("1")
        yield

    monkeypatch.setattr(deepspeed_extensions, "spinner", alive)
    for file in ("wait", "fail"):
        (build.folder / file).touch()
    several = [build.start() for _ in range(3)]
    build.until(lambda: build.compilers == 1 and waiting.exists() and waiting.read_text() == "11")
    (build.folder / "wait").unlink()
    assert ends(*several) == [2, 3, 3] and build.compilers == 1
    (build.folder / "fail").unlink()
    assert ends(build.start()) == [0]


def test_a_library_that_does_not_load_is_built_anew(build):
    assert ends(build.start()) == [0]
    library = deepspeed_extensions._library("tiny_extension")
    whole = library.read_bytes()
    for damaged in (b"", whole[:40], whole[: len(whole) // 2], whole[:-1], b"\0" * len(whole), b"not a library" * 99):
        before = build.compilers
        library.write_bytes(damaged)
        assert ends(build.start()) == [0] and build.compilers == before + 1
        assert library.stat().st_size == len(whole)


@pytest.mark.parametrize("own", [False, True])
def test_a_wait_says_for_whom_or_that_this_job_compiles_and_ends(build, own, monkeypatch, capfd):
    (build.folder / "wait").touch()
    builder = build.start()
    build.until(lambda: build.compilers == 1)
    monkeypatch.setattr(deepspeed_extensions, "MAX_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(deepspeed_extensions, "background_builds", {builder.pid} if own else set())
    with pytest.raises(
        RuntimeError, match=f"process {builder.pid} on .* has been compiling tiny_extension .*; end that process"
    ):
        build.load()
    shown = capfd.readouterr().err
    assert (f"waiting for process {builder.pid} on" in shown) != own
    said = shown.count("compiling DeepSpeed's tiny_extension, once per environment")
    assert said == 1 + own, "the builder says it in any case"


def test_locks_that_the_file_system_does_not_have_are_done_without(build, monkeypatch):
    def no_locks(*_):
        raise OSError("No locks available")

    monkeypatch.setattr(deepspeed_extensions.fcntl, "flock", no_locks)
    (build.folder / "wait").touch()
    both = [build.start(), build.start()]
    build.until(lambda: build.compilers == 2)
    (build.folder / "wait").unlink()
    assert ends(*both) == [0, 0]
