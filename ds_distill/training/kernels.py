"""Compiled optimizers, DeepSpeed's and apex's: whether this machine can have them, and if not, why."""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from ds_distill.console import alive, say

# The compiled files hold paths of the environment that built them: where two share torch's folder, each builds anew what the other built.
if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix, "torch_extensions")))
FAILED = "failed: "
STALE_SECONDS = 900  # no build of one optimizer takes this long


def has_compiler() -> bool:
    return bool(shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"))


def why_no_build() -> str | None:
    """Why nothing can be compiled here, or None."""
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")  # ninja lies beside an interpreter that nobody activated
    if not has_compiler():
        return "no C++ compiler"
    if not shutil.which("ninja"):
        return "no ninja"
    if torch.cuda.is_available() and not shutil.which("nvcc") and not Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc").exists():
        return "no CUDA compiler (nvcc)"
    return None


def build_fused_adam() -> str | None:
    """Compile, or load from the cache, DeepSpeed's FusedAdam (its C++ body on a CPU); returns why it can't be had, or None.

    The first time on a machine takes about a minute; several processes may call it, one builds.
    """
    reason = why_no_build()
    if reason:
        return reason
    from deepspeed.ops.op_builder import FusedAdamBuilder

    try:
        with _one_builds(_build_folder()):
            if not (built := is_built()):
                say("optimizer: compiling DeepSpeed's FusedAdam, once an environment, about a minute (training.optimizer = torch does without)")
            with contextlib.nullcontext() if built else alive("compiling"):
                FusedAdamBuilder().load(verbose=False)
    except Exception as error:  # compilers fail in as many ways as there are; torch's own optimizer is at hand
        return first_line(error)
    return None


def is_built() -> bool:
    """Whether the compiled optimizer lies in the cache."""
    return any(_build_folder().glob("fused_adam*.so"))


def _build_folder() -> Path:
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory("fused_adam", verbose=False))


def build_ahead() -> None:
    """Start the build in a process of its own, so that it runs while text is read. Does nothing where it is built or can't be."""
    if why_no_build() is None and not is_built():
        command = [sys.executable, "-c", "from ds_distill.training.kernels import build_fused_adam; build_fused_adam()"]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def _one_builds(folder: Path):
    """Hold the build in `folder`: alone while it is to be built, with others while it is only loaded. RuntimeError where another's build failed.

    torch's own lock, a file, outlives a process that was killed, and every later one would wait for it for ever. Here a process holds a lock that dies
    with it: who has it alone, and is on the host of the one that had it so last, can be sure that a file left there is nobody's. The lock's file says
    which host that was, or why its build failed; of one that was killed it says the host.
    """
    lock = folder / "lock"
    with open(folder / "builder", "a+") as builder:
        loads = is_built() and not lock.exists()
        waited = _acquire(builder, fcntl.LOCK_SH if loads else fcntl.LOCK_EX)
        if not loads:
            builder.seek(0)
            last = builder.read()
            if waited and last.startswith(FAILED):
                raise RuntimeError(f"another process could not compile it: {last.removeprefix(FAILED)}")
            with contextlib.suppress(FileNotFoundError):
                if last == socket.gethostname() or time.time() - lock.stat().st_mtime > STALE_SECONDS:
                    lock.unlink()
            _write(builder, socket.gethostname())
        try:
            yield
        except Exception as error:
            if not loads:
                _write(builder, FAILED + first_line(error))
            raise


def _write(builder, what: str) -> None:
    builder.truncate(0)
    builder.write(what)
    builder.flush()


def first_line(error: Exception) -> str:
    """What an error says, shortened to a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _acquire(file, how: int) -> bool:
    """Whether it had to be waited for."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        with alive("waiting for another process that compiles the optimizer"):
            fcntl.flock(file, how)
        return True


def make_resumable(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Make a step of DeepSpeed's CPU Adam depend on its step number alone, so that a resumed run is bit-equal.

    Its C++ body multiplies beta^t up from step to step, but after a resume takes pow(beta, t): another last bit. An update of a dummy with
    other betas before each step makes it take pow always.
    """
    dummy = [torch.zeros(1) for _ in range(4)]
    if hasattr(optimizer, "ds_opt_adam"):

        def forget(*_) -> None:
            optimizer.ds_opt_adam.adam_update(optimizer.opt_id, 1, 0.0, 0.5, 0.5, 1.0, 0.0, False, *dummy)
    else:

        def forget(*_) -> None:
            optimizer.multi_tensor_adam(1, torch.zeros(1, dtype=torch.int), [[x] for x in dummy], 0.0, 0.5, 0.5, 1.0, 1, 1, 0, 0.0)

    optimizer.register_step_pre_hook(forget)
    return optimizer


def why_no_apex() -> str | None:
    """Why NVIDIA's apex cannot be used, or None. The package of that name on the public index is a web toolkit, not NVIDIA's."""
    if importlib.util.find_spec("apex") is None:
        return "apex is not installed (built from source: see requirements-gpu.txt)"
    try:
        from apex.optimizers import FusedAdam  # noqa: F401
    except ImportError:
        return "the apex installed here is not NVIDIA's, or was built without CUDA: see requirements-gpu.txt"
    return None if torch.cuda.is_available() else "NVIDIA's apex needs a GPU"
