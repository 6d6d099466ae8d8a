"""Energy counters of machines that have them: RAPL for the processor packages, NVML for the GPU."""

from __future__ import annotations

import functools
from pathlib import Path

RAPL = Path("/sys/class/powercap")


def joules(gpu: bool) -> float | None:
    """Return the energy used since some fixed time in the past, or None if no counter can be read.

    The energy is that of the processor packages, or with `gpu` that of the first GPU alone.
    """
    readings = [read() for read in _counters(gpu)]
    return sum(readings) if readings and None not in readings else None


@functools.cache
def _counters(gpu: bool) -> list:
    if gpu:
        return _gpu()
    named = [folder for folder in sorted(RAPL.glob("intel-rapl:*")) if (folder / "name").is_file()]
    # Only packages count: psys and the parts of a package count the same joules again.
    return [
        _Package(folder).read for folder in named if (folder / "name").read_text(encoding="utf-8").startswith("package")
    ]


class _Package:
    """Read one package's counter in microjoules, which wraps around at the end of its range."""

    def __init__(self, folder: Path):
        self.folder, self.before, self.turns = folder, 0, 0

    def read(self) -> float | None:
        """Return the joules so far, or None if the counter cannot be read."""
        try:
            now, most = (
                int((self.folder / name).read_text(encoding="utf-8")) for name in ("energy_uj", "max_energy_range_uj")
            )
        except (OSError, ValueError):  # missing, or readable by root only
            return None
        self.turns += now < self.before
        self.before = now
        return (now + self.turns * most) / 1e6


def _gpu() -> list:
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # The GPU is found by its UUID: NVML numbers all GPUs, torch only those that CUDA_VISIBLE_DEVICES names.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return [lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3]
    except Exception:  # no library, no driver, no GPU, or no energy counter
        return []
