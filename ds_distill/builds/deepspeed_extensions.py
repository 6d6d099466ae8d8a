"""DeepSpeed's C++ extensions (FusedAdam, CPUAdam, …), built once per environment, either complete or absent.

torch and DeepSpeed build an extension in the folder that it is loaded from, under a lock that is a
file. Both outlive a process that is killed: every later process then waits for the lock forever, or
loads half a library. Here an extension is built in a folder of its own and renamed into place. The
lock is the kernel's, which ends with its process.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import psutil
import torch
from deepspeed.git_version_info import version as deepspeed_version
from deepspeed.ops.op_builder.builder import OpBuilder

from ds_distill.builds.cache_folder import environment_folder, host_folder, is_on_network
from ds_distill.builds.elf import is_complete_elf
from ds_distill.distributed.launch_environment import world_size
from ds_distill.utils.console import log, spinner

FAILED = "failed: "
MAX_WAIT_SECONDS = 1800  # no build of one extension takes this long
_POLL_SECONDS = 0.2
background_builds: set[int] = set()  # the processes in which this one has a build running
_torch_build = OpBuilder.jit_load


def load_extension(builder: OpBuilder) -> ModuleType:
    """Return the module of a DeepSpeed extension, from the folder of extensions, or built there first.

    A build takes about a minute. Several processes may call this at once: one builds, the others
    wait for it, and then load it at the same time.

    Raises:
        RuntimeError: The extension cannot be built here, or another process has been building it
            for half an hour.
    """
    name = builder.name
    module = _load_built(name)
    while module is None:
        with _build_lock(name) as is_held:
            if is_held:
                module = _load_built(name) or _build(builder)
        if not is_held:  # another process has built it
            module = _load_built(name)
    OpBuilder._loaded_ops[name] = module
    return module


def is_built(name: str) -> bool:
    """Return whether the extension is in the environment's folder."""
    return _library(name).is_file()


def extensions_folder() -> Path:
    """Return the folder of this environment's extensions for this kind of machine.

    Compiled code depends on the Python environment (paths, versions) and on the processor, since
    DeepSpeed compiles for the very machine it runs on. Hosts of several kinds on one file system
    have a folder each. So has each host where the environment, or without one the home, is on a
    network.
    """
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or environment_folder("torch_extensions")
    if not root:
        from torch.utils.cpp_extension import get_default_build_root

        root = get_default_build_root()
    if "TORCH_EXTENSIONS_DIR" not in os.environ and is_on_network(root):
        root = host_folder("torch_extensions")
    return Path(root) / _machine_key()


@functools.cache
def _machine_key() -> str:
    devices = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    kinds = "-".join(f"sm{major}{minor}" for major, minor in sorted(set(devices))) or "cpu"
    details = f"{platform.machine()} {_processor_features()} {torch.version.cuda} {sys.prefix}"
    digest = hashlib.sha256(details.encode()).hexdigest()[:8]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return f"deepspeed{deepspeed_version}-torch{torch.__version__}-{python}-{kinds}-{digest}"


def _processor_features() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _library(name: str) -> Path:
    return extensions_folder() / name / f"{name}.so"


def _load_built(name: str) -> ModuleType | None:
    """Return the module of a built extension; None where there is none, or a library that does not load."""
    file = _library(name)
    if not file.is_file():
        return None
    if not is_complete_elf(file):
        log(f"{file}: the library is incomplete; rebuilding it")
        return None
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it knows .so
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:  # the disk lost it, or a library of the system is gone
        log(f"{file}: does not load ({first_line(error)}); rebuilding it")
        return None
    return module


def _build(builder: OpBuilder) -> ModuleType:
    """Build in this process's own folder and publish the result by a rename; the caller holds the lock."""
    folder, prefix = extensions_folder(), f".{builder.name}.{socket.gethostname()}."
    for leftover in folder.glob(f"{prefix}*"):
        # a build that was killed on this host
        if not psutil.pid_exists(int(leftover.name.removeprefix(prefix).split(".")[0])):
            shutil.rmtree(leftover, ignore_errors=True)
    log(_compiling(builder.name))
    build_folder = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}.", dir=folder)
    previous_root = os.environ.get("TORCH_EXTENSIONS_DIR")
    os.environ["TORCH_EXTENSIONS_DIR"] = build_folder
    flags = [flag for flag in builder.cxx_args() if flag != "-g"]  # symbols for debuggers take a third of the time
    try:
        with spinner("compiling"), mock.patch.object(builder, "cxx_args", lambda: flags):
            module = _torch_build(builder, verbose=False)
        # the old library does not load, or comes from a host that the lock does not reach
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder / builder.name, Path(build_folder) / "replaced")
        with contextlib.suppress(OSError):  # such a host may have been faster
            os.rename(Path(build_folder) / builder.name, folder / builder.name)
    finally:
        if previous_root is None:
            del os.environ["TORCH_EXTENSIONS_DIR"]
        else:
            os.environ["TORCH_EXTENSIONS_DIR"] = previous_root
        shutil.rmtree(build_folder, ignore_errors=True)
    return module


def _compiling(name: str) -> str:
    names = {"fused_adam": "FusedAdam", "cpu_adam": "CPUAdam"}
    return f"compiling DeepSpeed's {names.get(name, name)}, once per environment (about a minute)"


@contextlib.contextmanager
def _build_lock(name: str) -> Iterator[bool]:
    """Hold the build lock of `name`; its file names who builds, or why the last build failed.

    Yields whether it is held. It is not where another process has built the extension meanwhile: of
    hundreds that wait, none has to wait for the others to load it. Raises RuntimeError where the
    build that was waited for failed, so that not every rank tries in turn, and after half an hour of
    waiting.
    """
    folder = extensions_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "a+", encoding="utf-8") as lock:
        waited = _acquire(lock, name)
        if waited is None:
            yield False
            return
        last = _read(lock)
        if waited and last.startswith(FAILED):
            raise RuntimeError(f"another process could not compile it: {last.removeprefix(FAILED)}")
        _write(lock, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield True
        except Exception as error:
            _write(lock, FAILED + first_line(error))
            raise


def _acquire(lock, name: str) -> bool | None:
    """Take the lock; return whether it had to be waited for, or None where the extension is built by then."""
    before = _version(name)
    if _try_lock(lock):
        return False
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    time.sleep(_POLL_SECONDS)  # who has just taken the lock writes its name there first
    ours = _is_ours(_read(lock))
    log(_compiling(name) if ours else f"waiting for {_read(lock) or 'another process'}, which is compiling {name}")
    with spinner("compiling" if ours else "waiting"):
        while not _try_lock(lock):
            if _version(name) not in (None, before):
                return None
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{_read(lock) or 'another process'} has been compiling {name} for "
                    f"{MAX_WAIT_SECONDS // 60} minutes; end that process, and start again"
                )
            time.sleep(_POLL_SECONDS)
    return True


def _version(name: str) -> tuple[int, int] | None:
    """Return what tells a library from another one in its place; None where there is none."""
    try:
        facts = _library(name).stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


def _is_ours(holder: str) -> bool:
    """Return whether this job holds the lock: its background build, or one of its ranks on this host."""
    match = re.fullmatch(r"process (\d+) on (.*)", holder)
    if match is None or match[2] != socket.gethostname():
        return False
    if int(match[1]) in background_builds:
        return True
    with contextlib.suppress(psutil.Error):
        return world_size() > 1 and psutil.Process(int(match[1])).ppid() == os.getppid()
    return False


def _try_lock(lock) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # on a file system without locks each process builds, and the first rename wins
        return True
    return True


def _read(lock) -> str:
    lock.seek(0)
    return lock.read().strip()


def _write(lock, text: str) -> None:
    lock.truncate(0)
    lock.write(text)
    lock.flush()


def first_line(error: Exception) -> str:
    """Return an error's message, shortened to a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
