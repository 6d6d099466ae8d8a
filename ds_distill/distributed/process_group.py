"""The ranks of a job: how they join and leave it, and how they communicate beside the training."""

import contextlib
import functools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from deepspeed.constants import default_pg_timeout

from ds_distill.deepspeed_fixes import guard_extension_builds, skip_unused_extension
from ds_distill.distributed.agent_store import join_attempt, uses_agent_store
from ds_distill.distributed.code_version import check_same_code, describe_code
from ds_distill.distributed.heartbeat import Heartbeat
from ds_distill.distributed.host_names import unresolved_reason
from ds_distill.distributed.launch_environment import SINGLE_PROCESS, gpu_index, idle_gpus
from ds_distill.utils.console import is_first
from ds_distill.utils.errors import UserError, get_message
from ds_distill.utils.open_files import allow_open_files

_heartbeats: list[Heartbeat] = []  # the job's heartbeat, where the job has several ranks


def start_distributed() -> tuple[int, int]:
    """Join the job's process group (a lone process makes its own); return (rank, world size).

    Raises:
        UserError: This host has fewer GPUs than ranks, or ranks run different code.
    """
    for key, value in SINGLE_PROCESS.items():
        os.environ.setdefault(key, value)
    if not torch.distributed.is_initialized():
        if os.environ["WORLD_SIZE"] == "1":
            # two lone runs on one machine must not meet on the default port, and a lone process meets nobody elsewhere
            os.environ["MASTER_PORT"] = _free_port()
            os.environ["MASTER_ADDR"] = SINGLE_PROCESS["MASTER_ADDR"]
            os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        allow_open_files(4 * int(os.environ["WORLD_SIZE"]))  # the connections of the store and of gloo's groups
        skip_unused_extension()
        guard_extension_builds()
        if torch.cuda.is_available():
            gpu_count = torch.cuda.device_count()
            # else every rank's first collective would be on GPU 0
            torch.cuda.set_device(gpu_index(int(os.environ["LOCAL_RANK"]), gpu_count))
            if idle := idle_gpus(gpu_count):
                print(idle, file=sys.stderr, flush=True)
        with _report_long_wait():
            _join("nccl" if torch.cuda.is_available() else "gloo")
        if (world := torch.distributed.get_world_size()) > 1:
            store = torch.distributed.distributed_c10d._get_default_store()
            _heartbeats.append(Heartbeat(store, torch.distributed.get_rank(), world))
            check_same_code(all_gather_object(describe_code()))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def _join(backend: str) -> None:
    """Make the process group, which DeepSpeed takes over where it is there."""
    if uses_agent_store():
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = join_attempt(rank, world, default_pg_timeout)
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world, timeout=default_pg_timeout
        )
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


@contextlib.contextmanager
def _report_long_wait(seconds: float = 15.0) -> Iterator[None]:
    """Print who is waited for where joining takes longer, since a rank that never comes is awaited for half an hour."""
    rank, world, address, port = (os.environ[key] for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    line = (
        f"rank {rank} of {world} is waiting for the other ranks at {address}:{port} "
        "(RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment)"
    )

    def show() -> None:
        reason = unresolved_reason(address)
        hint = f"; this host cannot resolve MASTER_ADDR = {address} ({reason})" if reason else ""
        print(line + hint, file=sys.stderr, flush=True)

    timer = threading.Timer(seconds, show)
    timer.daemon = True
    if os.environ["LOCAL_RANK"] == "0":  # one rank per host
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def stop_heartbeats() -> None:
    """Mark this rank's part as done, so that its silence is no loss from now on.

    It must not be called after a mistake, because the other ranks must notice that.
    """
    for heartbeat in _heartbeats:
        heartbeat.stop()


def end_job() -> None:
    """End the job's other ranks, since this rank has reported why it ends."""
    for heartbeat in _heartbeats:
        heartbeat.end_job()


@functools.cache
def _long_timeout_group():
    """Return a group with a long timeout.

    Ranks wait for hours while one of them prepares a corpus, and the default group gives up after
    ten minutes.
    """
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))


def broadcast_object(value: object) -> Any:
    """Collective: return the first rank's `value`, however long it takes to arrive."""
    values = [value]
    torch.distributed.broadcast_object_list(values, group=_long_timeout_group())
    return values[0]


def all_gather_object(value: object) -> list:
    """Collective: return every rank's `value`, by rank."""
    values: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=_long_timeout_group())
    return values


def run_on_rank0(job: Callable[[], object]) -> None:
    """Collective: run `job` on the first rank.

    Its mistake or full disk is a UserError on every rank, so that none waits for what never comes.
    """
    start_distributed()
    problem, failure = None, None
    if is_first():
        try:
            job()
        except (UserError, OSError) as error:
            problem = get_message(error, "the output folder", "choose another --output, or free some space")
        except Exception as error:
            problem, failure = f"the first rank failed: {error!r}", error
    problem = broadcast_object(problem)
    if failure:
        raise failure
    if problem:
        raise UserError(problem)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
