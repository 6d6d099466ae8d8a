"""Energy counters, where the machine has real ones: the processor packages' (RAPL), and the GPU's (NVML) for what computes on it."""

from __future__ import annotations

import functools
from pathlib import Path

RAPL = Path("/sys/class/powercap")


def joules(gpu: bool) -> float | None:
    """Energy used so far, since some time in the past: by the processor packages, or by the first GPU alone; None where no counter can be read."""
    found = [read() for read in _counters(gpu)]
    return sum(found) if found and None not in found else None


@functools.cache
def _counters(gpu: bool) -> list:
    if gpu:
        return _gpu()
    named = [folder for folder in sorted(RAPL.glob("intel-rapl:*")) if (folder / "name").is_file()]
    # psys and the parts of a package count the same joules once more
    return [
        _Package(folder).read for folder in named if (folder / "name").read_text(encoding="utf-8").startswith("package")
    ]


class _Package:
    """One package's counter in microjoules, which starts again at its range's end."""

    def __init__(self, folder: Path):
        self.folder, self.before, self.turns = folder, 0, 0

    def read(self) -> float | None:
        try:
            now, most = (
                int((self.folder / name).read_text(encoding="utf-8")) for name in ("energy_uj", "max_energy_range_uj")
            )
        except (OSError, ValueError):  # not there, or for root only
            return None
        self.turns += now < self.before
        self.before = now
        return (now + self.turns * most) / 1e6


def _gpu() -> list:
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # by its name: NVML's numbers are of all GPUs, torch's of those that CUDA_VISIBLE_DEVICES names
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return [lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3]
    except Exception:  # no library, no driver, no GPU, or one that does not count
        return []
