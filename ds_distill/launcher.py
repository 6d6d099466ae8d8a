"""The Python part of launch.sh: one rank of a job, or DeepSpeed's launcher that starts the ranks of this machine."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import sys

from ds_distill.cli.terminal import restart_in_utf8, tolerate_broken_streams
from ds_distill.utils.devices import visible_gpus


def main(script: str) -> None:
    """Run this process's part of a job.

    Args:
        script: Path of launch.sh, which the launcher starts once per rank.
    """
    restart_in_utf8()
    tolerate_broken_streams()
    argv = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank=")]
    _silence_libraries()
    ranks = os.environ.pop("DS_DISTILL_START", None)
    if ranks is not None:
        _start_launcher(script, ranks, argv)
        return
    if "LOCAL_SIZE" in os.environ:
        # Ctrl-C reaches every process of the terminal; DeepSpeed's launcher, which sets LOCAL_SIZE, answers it with
        # SIGTERM to its ranks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _share_cores()
    from ds_distill.cli import main as cli

    raise SystemExit(cli(["run", *argv]))


def _silence_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if "RANK" in os.environ else "true")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not os.path.exists("/proc/driver/nvidia/version") and not shutil.which("nvidia-smi"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # unset, DeepSpeed warns that it found no GPU


def _share_cores() -> None:
    """Share the machine's cores among its ranks; without this each would start a thread for every core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(os.environ.get("LOCAL_SIZE") or 1))))


def _start_launcher(script: str, ranks: str, argv: list[str]) -> None:
    """Run DeepSpeed's launcher for one node on `script`.

    The command "deepspeed" would start the same launcher in a second process. That costs another import of torch, and
    the first process passes no signal on: ended alone it leaves the ranks behind. For many nodes there is
    "deepspeed --hostfile".
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.launcher import launch

    accelerator = get_accelerator()
    visible = os.environ.get(accelerator.visible_devices_envs()[0], "")
    if accelerator.device_name() == "cpu":
        devices = [str(device) for device in range(1 if ranks == "all" else int(ranks))]
    else:
        count = accelerator.device_count()
        devices = visible_gpus(visible)[:count] or [str(device) for device in range(count)]
        if ranks != "all" and int(ranks) > len(devices):
            raise SystemExit(
                f"launch.sh: DS_DISTILL_RANKS = {ranks}: only {len(devices)} GPUs are visible on this machine; "
                "lower DS_DISTILL_RANKS"
            )
        devices = devices if ranks == "all" else devices[: int(ranks)]
    nodes = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    with socket.socket() as probe:  # with a fixed port a machine could run only one at a time
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_level = "info" if "--verbose" in argv else "critical"
    sys.argv = [
        "launch",
        f"--world_info={nodes}",
        f"--master_port={port}",
        f"--log_level={log_level}",
        script,
        *argv,
    ]
    launch.main()
