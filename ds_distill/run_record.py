"""What a finished run records of where it came from: its command, the versions, the hardware and the date."""

from __future__ import annotations

import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ds_distill import __version__
from ds_distill.run_folder import RunFolder
from ds_distill.utils.files import write_json
from ds_distill.utils.machine import cores, package_versions, processor_name
from ds_distill.utils.memory import memory_limit

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers")


def write_record(folder: Path, **facts: Any) -> None:
    """Write folder/record.json: {command, finished, versions, hardware} of this process, and `facts`.

    A report shows it. The time is UTC, to the minute.
    """
    record = {
        "command": describe_command(sys.argv),
        "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {"ds-distill": __version__} | package_versions(PACKAGES),
        "hardware": _describe_hardware(),
    }
    write_json(RunFolder(folder).record, record | facts)


def describe_command(argv: list[str]) -> str:
    """Return the words that this process was started with, as one types them."""
    program, words = Path(argv[0]), [word for word in argv[1:] if not word.startswith("--local_rank")]
    if "ipykernel" in argv[0]:
        return "a notebook"  # its words are those of the kernel
    if argv[0] in ("", "-c", "-"):
        return "a Python session"
    name = "ds-distill" if program.name == "__main__.py" and program.parent.name == "ds_distill" else program.name
    return shlex.join([name, *words])


def _describe_hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {
        "cpu": processor_name(),
        "cpu_cores": cores(),
        "memory_gib": round(memory_limit() / 2**30, 1),
        "ranks": int(os.environ.get("WORLD_SIZE") or 1),
    }
    torch = sys.modules.get("torch")  # a study, which starts its runs as processes, need not load it
    if torch is not None and torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return hardware
