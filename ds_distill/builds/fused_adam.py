"""Compiled optimizers, DeepSpeed's and apex's: whether this machine can have them, and if not, why."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from ds_distill.builds.deepspeed_extensions import first_line, is_built
from ds_distill.deepspeed_fixes import guard_extension_builds


def has_compiler() -> bool:
    return bool(shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"))


def build_unavailable_reason() -> str | None:
    """Why nothing can be compiled here, or None."""
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = (
            scripts + os.pathsep + os.environ.get("PATH", "")
        )  # ninja lies beside an interpreter that nobody activated
    if not has_compiler():
        return "no C++ compiler"
    if not shutil.which("ninja"):
        return "no ninja"
    if (
        torch.cuda.is_available()
        and not shutil.which("nvcc")
        and not Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvcc").exists()
    ):
        return "no CUDA compiler (nvcc)"
    return None


def build_optimizer(offload: bool = False) -> str | None:
    """Compile, or load, DeepSpeed's FusedAdam (its C++ body on a CPU) or, for `offload`, its CPUAdam.

    Returns why the optimizer cannot be had, or None. The first time in an environment takes about a minute; several processes
    may call it, one builds.
    """
    reason = build_unavailable_reason()
    if reason:
        return reason
    from deepspeed.ops.op_builder import CPUAdamBuilder, FusedAdamBuilder

    guard_extension_builds()
    try:
        (CPUAdamBuilder if offload else FusedAdamBuilder)().load(verbose=False)
    except Exception as error:  # compilers fail in as many ways as there are; torch's own optimizer is at hand
        return first_line(error)
    return None


def start_build() -> None:
    """Start the build in a process of its own, so that it runs while text is read. Does nothing where it is built or can't be."""
    if build_unavailable_reason() is None and not is_built("fused_adam"):
        command = [sys.executable, "-c", "from ds_distill.builds.fused_adam import build_optimizer; build_optimizer()"]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def apex_unavailable_reason() -> str | None:
    """Why NVIDIA's apex cannot be used, or None. The package of that name on the public index is a web toolkit, not NVIDIA's."""
    if importlib.util.find_spec("apex") is None:
        return "apex is not installed (built from source: see requirements-gpu.txt)"
    try:
        from apex.optimizers import FusedAdam  # noqa: F401
    except ImportError:
        return "the apex installed here is not NVIDIA's, or was built without CUDA: see requirements-gpu.txt"
    return None if torch.cuda.is_available() else "NVIDIA's apex needs a GPU"
