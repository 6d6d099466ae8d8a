"""DeepSpeed's and apex's compiled optimizers: whether this machine can have them, and if not, why."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ds_distill.builds.deepspeed_extensions import background_builds, first_line, is_built
from ds_distill.deepspeed_fixes import guard_extension_builds


def has_compiler() -> bool:
    """Return whether there is a C++ compiler."""
    return bool(shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"))


def build_unavailable_reason() -> str | None:
    """Return why nothing can be compiled here, or None."""
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        # ninja lies beside the interpreter, whose environment may not be activated
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    if not has_compiler():
        return "no C++ compiler found"
    if not shutil.which("ninja"):
        return "ninja not found"
    if (
        torch.cuda.is_available()
        and not shutil.which("nvcc")
        and not Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc").exists()
    ):
        return "no CUDA compiler (nvcc) found"
    return None


def build_optimizer(offload: bool = False) -> str | None:
    """Compile, or load, DeepSpeed's FusedAdam (its C++ backend on a CPU) or, for `offload`, its CPUAdam.

    The first time in an environment takes about a minute. Several processes may call it; one
    builds.

    Returns:
        Why the optimizer is unavailable, or None.
    """
    reason = build_unavailable_reason()
    if reason:
        return reason
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    guard_extension_builds()
    try:
        (CPUAdamBuilder if offload else FusedAdamBuilder)().load(verbose=False)
    except Exception as error:  # compilers fail in many ways, and torch's own optimizer is always there
        return first_line(error)
    return None


def start_build() -> None:
    """Start the build in a separate process, so that it runs while text is read.

    Does nothing where the extension is built already or cannot be built.
    """
    if build_unavailable_reason() is None and not is_built("fused_adam"):
        command = [sys.executable, "-c", "from ds_distill.builds.fused_adam import build_optimizer; build_optimizer()"]
        quiet = subprocess.DEVNULL
        background_builds.add(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet).pid)


def apex_unavailable_reason() -> str | None:
    """Return why NVIDIA's apex cannot be used, or None.

    The package of that name on the public index is a web toolkit, not NVIDIA's.
    """
    if importlib.util.find_spec("apex") is None:
        return "apex is not installed (built from source: see requirements-gpu.txt)"
    try:
        from apex.optimizers import FusedAdam  # noqa: F401
    except ImportError:
        return "the installed apex is not NVIDIA's, or was built without CUDA (see requirements-gpu.txt)"
    return None if torch.cuda.is_available() else "NVIDIA's apex needs a GPU"
