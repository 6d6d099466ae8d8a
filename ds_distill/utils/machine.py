"""What a process runs on: the processor, its cores, and the releases of packages."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import psutil


def processor_name() -> str:
    """Return the name of the processor, or its architecture where the system does not tell more."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the releases of Python and of those packages that are installed, in their order."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds_of_others() -> float:
    """Return the processor seconds that other processes have had since this machine was started, all cores together."""
    total, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return total.user + total.system + getattr(total, "nice", 0.0) - own.user - own.system
