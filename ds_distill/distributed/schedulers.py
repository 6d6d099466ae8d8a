"""The place of a process in a job whose processes a scheduler or mpirun has started.

These tell a process its place under names of their own: Slurm's srun, Open MPI, MPICH, Intel MPI and MVAPICH. Slurm's
names are those of a step, since the script of a batch job, which is one process, has the job's as well.

This module imports nothing that takes time.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ds_distill.distributed.host_names import unresolved_reason
from ds_distill.utils.errors import UserError


@dataclass(frozen=True)
class Scheduler:
    """The variables in which a scheduler tells a process its place.

    Attributes:
        command: The command that starts the processes.
        rank: The number of the process in the job.
        size: The number of processes.
        local_rank: The number of the process on its host.
        local_size: The number of processes on its host; Slurm's has those of all hosts, such as 8(x3),4.
        job: What differs between two jobs on one machine; empty where only the process tells that has started theirs.
    """

    command: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    job: str


# The innermost first: in a job of Slurm, srun starts the daemons of mpirun, whose processes inherit their variables.
SCHEDULERS = (
    Scheduler(
        "mpirun",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        "PMIX_NAMESPACE",
    ),
    Scheduler(
        "mpirun",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
        "MPIRUN_ID",
    ),
    Scheduler("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", ""),
    Scheduler(
        "srun",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        "SLURM_STEP_TASKS_PER_NODE",
        "SLURM_JOB_ID",
    ),
)
FIRST_PORT, PORTS = 20000, 10000  # the ports at which the ranks of such jobs meet
VARIABLES = tuple(dict.fromkeys(name for s in SCHEDULERS for name in (s.rank, s.size, s.local_rank, s.local_size)))


def find_scheduler(environment: Mapping[str, str] = os.environ) -> Scheduler | None:
    """Return what has started this process as one of several, or None."""
    found = [s for s in SCHEDULERS if environment.get(s.rank) and is_whole_number(environment.get(s.size, ""))]
    # srun --mpi=pmi2 sets the rank and the size of PMI too, but no local rank
    found.sort(key=lambda scheduler: not environment.get(scheduler.local_rank))
    return found[0] if found and int(environment[found[0].size]) > 1 else None


def rank_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables of the rank that a scheduler has started this process as; empty where none has.

    Raises:
        UserError: A number is none, or nothing tells where the first process is.
    """
    scheduler = find_scheduler(environment)
    if scheduler is None:
        return {}
    step = environment.get("SLURM_STEP_ID", "") if scheduler.command == "srun" else ""
    variables = {
        "RANK": str(_number(environment, scheduler.rank, 0)),
        "WORLD_SIZE": environment[scheduler.size],
        "LOCAL_RANK": str(_number(environment, scheduler.local_rank, 0)),
        "LOCAL_WORLD_SIZE": str(processes_per_host(environment) or ""),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_address(scheduler, environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or job_port(_job(scheduler, environment), step),
    }
    return {name: value for name, value in variables.items() if value}


def processes_per_host(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return how many processes of the job a scheduler has started on this host; None where nothing tells."""
    scheduler = find_scheduler(environment)
    listed = environment.get(scheduler.local_size, "") if scheduler else ""
    counts: list[int] = []
    for part in listed.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    host = environment.get("SLURM_NODEID", "") if len(counts) > 1 else "0"
    return counts[int(host)] if is_whole_number(host) and int(host) < len(counts) else None


def starts_nodes(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a scheduler has started one process per host, which then starts the ranks there."""
    scheduler = find_scheduler(environment)
    if scheduler and scheduler.command == "srun" and environment.get("SLURM_STEP_NUM_NODES"):
        return environment["SLURM_STEP_NUM_NODES"] == environment[scheduler.size]
    return processes_per_host(environment) == 1


def job_port(job: str, step: str = "") -> str:
    """Return a port for a job and its step, so that two of one machine meet at different ones."""
    return str(FIRST_PORT + zlib.crc32(f"{job}.{step}".encode()) % PORTS)


def _job(scheduler: Scheduler, environment: Mapping[str, str]) -> str:
    """Return what differs between two jobs on one machine, and is the same for all processes of one."""
    if scheduler.job:
        return environment.get(scheduler.job, "")
    alone = processes_per_host(environment) == int(environment[scheduler.size])
    return _find_hydra_proxy() if alone else ""  # each host has a proxy of its own


def _find_hydra_proxy() -> str:
    """Return the number of the process with which mpiexec of MPICH and Intel MPI starts those of a host, or nothing."""
    process = os.getppid()
    while process > 1:
        try:
            name, _, rest = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")
        except (OSError, ValueError):
            return ""
        if name.partition("(")[2].startswith("hydra_"):
            return str(process)
        process = int(rest.split()[1])
    return ""


def first_host(hosts: str) -> str:
    """Return the first host of a list as Slurm writes it, such as node[03-05,9]-ib,gpu1."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    assert first is not None  # the pattern matches everywhere
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _first_address(scheduler: Scheduler, environment: Mapping[str, str]) -> str:
    """Return the address of the host of the first process."""
    if scheduler.command == "srun":
        if environment.get("SLURM_STEP_NUM_NODES") == "1":
            return "127.0.0.1"
        host = first_host(environment.get("SLURM_STEP_NODELIST", ""))
        # names of nodes need not be those of hosts; a batch script runs srun on the first node
        if unresolved_reason(host):
            host = environment.get("SLURM_LAUNCH_NODE_IPADDR", host)
        if host:
            return host
    elif processes_per_host(environment) == int(environment[scheduler.size]):
        return "127.0.0.1"
    raise UserError(
        f"{scheduler.size} = {environment[scheduler.size]} in the environment, but no MASTER_ADDR: {scheduler.command} "
        "does not tell the processes where the first one is; set MASTER_ADDR to the first host's address on all of "
        "them, as in mpirun -x MASTER_ADDR=10.0.0.1 … or, under the command deepspeed, in a line of .deepspeed_env"
    )


def is_whole_number(value: str) -> bool:
    """Return whether a variable's value is a whole number from 0, in ASCII digits alone."""
    return value.isascii() and value.isdecimal()


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, "")
    if value and not is_whole_number(value):
        raise UserError(f"{name} = {value} in the environment: must be a whole number; unset it, or start the job anew")
    return int(value) if value else default
