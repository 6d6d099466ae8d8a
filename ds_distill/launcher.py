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
from ds_distill.distributed import schedulers
from ds_distill.distributed.launch_environment import RANK_VARIABLES
from ds_distill.distributed.nodes import Node, find_node, idle_nodes, pop_options
from ds_distill.utils.devices import visible_gpus
from ds_distill.utils.errors import UserError
from ds_distill.utils.machine import cores


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
    if ranks is not None and not _is_rank_of_scheduler():
        try:
            options, argv = pop_options(argv)
            node = find_node(options)
        except UserError as error:
            raise SystemExit(f"launch.sh: {error}") from None
        if node is None and (idle := idle_nodes()):
            print(f"launch.sh: {idle}", file=sys.stderr)
        _start_launcher(script, ranks, argv, node)
        return
    if "LOCAL_SIZE" in os.environ:
        # Ctrl-C reaches every process of the terminal; DeepSpeed's launcher, which sets LOCAL_SIZE, answers it with
        # SIGTERM to its ranks.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _share_cores()
    from ds_distill.cli import main as cli

    raise SystemExit(cli(["run", *argv]))


def _is_rank_of_scheduler() -> bool:
    """Return whether a scheduler has started several of these processes on a host, each of which is a rank."""
    return not os.environ.get("RANK") and schedulers.find_scheduler() is not None and not schedulers.starts_nodes()


def _silence_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false" if "RANK" in os.environ else "true")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not os.path.exists("/proc/driver/nvidia/version") and not shutil.which("nvidia-smi"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # unset, DeepSpeed warns that it found no GPU


def _share_cores() -> None:
    """Share the machine's cores among its ranks; without this each would start a thread for every core."""
    given = os.environ.get("LOCAL_SIZE", "")
    ranks = int(given) if schedulers.is_whole_number(given) else schedulers.processes_per_host()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // (ranks or 1))))


def _start_launcher(script: str, ranks: str, argv: list[str], node: Node | None) -> None:
    """Run DeepSpeed's launcher for this node on `script`.

    The command "deepspeed" would start the same launcher in a second process. That costs another import of torch, and
    the first process passes no signal on: ended alone it leaves the ranks behind.

    Args:
        script: Path of launch.sh.
        ranks: The number of ranks to start here, or "all" for one per GPU.
        argv: The arguments of the ranks.
        node: The place of this node among several, each of which has as many ranks; None where there is one.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.launcher import launch

    from ds_distill.deepspeed_fixes import let_ranks_save

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
    if node is None:
        with socket.socket() as probe:  # with a fixed port a machine could run only one at a time
            probe.bind(("127.0.0.1", 0))
            node = Node(1, 0, "127.0.0.1", str(probe.getsockname()[1]))
    hosts = {f"node{number}": devices for number in range(node.count)}
    nodes = base64.urlsafe_b64encode(json.dumps(hosts).encode()).decode()
    for name in RANK_VARIABLES:  # those of a pod, which are its node's; the launcher sets each rank's own
        os.environ.pop(name, None)
    log_level = "info" if "--verbose" in argv else "critical"
    sys.argv = [
        "launch",
        f"--world_info={nodes}",
        f"--node_rank={node.rank}",
        f"--master_addr={node.address}",
        f"--master_port={node.port}",
        f"--log_level={log_level}",
        script,
        *argv,
    ]
    let_ranks_save(launch, len(devices))
    for number in (signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))
    launch.main()
