"""The place of a node among those of a job: launch.sh starts the ranks of one, and is started on each.

It is told by options of torchrun's names, or by what has started launch.sh once per node: Slurm's srun, mpirun, and
Kubernetes through the variables of Kubeflow.

This module imports nothing that takes time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ds_distill.config.unknown_keys import LAUNCHER_OPTIONS
from ds_distill.distributed import launch_environment, schedulers
from ds_distill.utils.errors import UserError

DEFAULT_PORT = "29500"  # torch's


@dataclass(frozen=True)
class Node:
    """A node's place.

    Attributes:
        count: The number of nodes.
        rank: The number of this one, from 0.
        address: The address of the first node.
        port: The port there at which the ranks meet.
    """

    count: int
    rank: int
    address: str
    port: str


def pop_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options of a node among the words of a command by their names, and the other words.

    Raises:
        UserError: An option has no value.
    """
    options, others, rest = {}, [], iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or key not in LAUNCHER_OPTIONS:
            others.append(word)
            continue
        options[key] = value if equals else next(rest, "")
        if not options[key]:
            raise UserError(f"{name}: needs a value after it")
    return options, others


def find_node(options: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Node | None:
    """Return the place of this node; None where the job has one node.

    Args:
        options: What `pop_options` has found, which counts before what the environment says.
        environment: The environment of launch.sh.

    Raises:
        UserError: A number is none, or what is known does not suffice.
    """
    found = _from_environment(environment)
    known = {**found, **options}
    if not known.get("nnodes"):
        launch_environment.check_lone(environment)
    count = _number(options, found, "nnodes", "1")
    if count < 1:
        raise UserError(f"--nnodes {count}: must be at least 1")
    if count == 1:
        if options.get("node_rank", "0") != "0":
            raise UserError(f"--node_rank {options['node_rank']}: give --nnodes, the number of nodes, too")
        return None
    if lacking := [name for name in ("node_rank", "master_addr") if not known.get(name)]:
        raise UserError(
            f"--nnodes {count}: give {' and '.join(f'--{name}' for name in lacking)} on each node: its number from 0, "
            "and the first node's address, the same on all"
        )
    rank = _number(options, found, "node_rank", "0")
    if rank >= count:
        raise UserError(f"--node_rank {rank}: --nnodes {count} has the nodes 0 to {count - 1}")
    port = _number(options, found, "master_port", DEFAULT_PORT)
    if not 0 < port < 65536:
        raise UserError(f"--master_port {port}: must be between 1 and 65535")
    return Node(count, rank, known["master_addr"], str(port))


def idle_nodes(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return a sentence on the nodes of a job of Slurm that one process, which is no task of srun, leaves idle."""
    nodes = environment.get("SLURM_JOB_NUM_NODES", "")
    if nodes in ("", "1") or environment.get("SLURM_STEP_NUM_TASKS"):
        return None
    return f"1 of the {nodes} nodes of this job is used; srun --ntasks-per-node=1 ./launch.sh … starts ranks on all"


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what a scheduler that started this process once per node says, under the names of the options."""
    shared = {"master_addr": environment.get("MASTER_ADDR", ""), "master_port": environment.get("MASTER_PORT", "")}
    shared = {name: value for name, value in shared.items() if value}
    if ":" in environment.get("PET_NNODES", ""):
        raise UserError(
            f"PET_NNODES = {environment['PET_NNODES']} in the environment: launch.sh starts a fixed number of nodes; "
            "start an elastic job with torchrun launch.sh"
        )
    if environment.get("PET_NNODES"):  # Kubeflow; torchrun reads these too
        found = {
            name: environment[f"PET_{name.upper()}"]
            for name in LAUNCHER_OPTIONS
            if environment.get(f"PET_{name.upper()}")
        }
        rank = {"node_rank": environment["RANK"]} if environment.get("RANK") else {}
        return {**shared, **rank, **found}
    if environment.get("RANK") and environment.get("WORLD_SIZE") and not environment.get("LOCAL_RANK"):
        # Kubeflow's operator: a pod is a node
        return {**shared, "nnodes": environment["WORLD_SIZE"], "node_rank": environment["RANK"]}
    if not environment.get("RANK") and schedulers.starts_nodes(environment):
        place = schedulers.rank_variables(environment)
        return {
            "nnodes": place["WORLD_SIZE"],
            "node_rank": place["RANK"],
            "master_addr": place["MASTER_ADDR"],
            "master_port": place["MASTER_PORT"],
        }
    return {}


def _number(options: Mapping[str, str], found: Mapping[str, str], name: str, default: str) -> int:
    value = options.get(name) or found.get(name) or default
    if not schedulers.is_whole_number(value):
        where = "" if options.get(name) else ", from the environment"
        raise UserError(f"--{name} {value}{where}: must be a whole number")
    return int(value)
