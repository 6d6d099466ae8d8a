"""Energy counters, where the machine has real ones: the processor packages' (RAPL) and the GPUs' (NVML)."""

from __future__ import annotations

import functools
from pathlib import Path

RAPL = Path("/sys/class/powercap")


def joules() -> float | None:
    """Energy used so far by processor packages and GPUs together, since some time in the past; None where no counter can be read."""
    found = [value for read in _counters() if (value := read()) is not None]
    return sum(found) if found else None


@functools.cache
def _counters() -> list:
    return [functools.partial(_Package(folder).read) for folder in sorted(RAPL.glob("intel-rapl:?"))] + _gpus()


class _Package:
    """One package's counter in microjoules, which starts again at its range's end."""

    def __init__(self, folder: Path):
        self.folder, self.before, self.turns = folder, 0, 0

    def read(self) -> float | None:
        try:
            now, most = (int((self.folder / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
        except (OSError, ValueError):  # not there, or for root only
            return None
        self.turns += now < self.before
        self.before = now
        return (now + self.turns * most) / 1e6


def _gpus() -> list:
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [lambda handle=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3 for handle in handles]
    except Exception:  # no library, no driver, no GPU, or one that does not count
        return []
