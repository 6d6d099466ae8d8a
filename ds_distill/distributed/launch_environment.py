"""The job that this process belongs to, as a launcher, or something else, has described it in the environment.

This module imports nothing that takes time.
"""

import os
from collections.abc import Mapping

from ds_distill.distributed import schedulers
from ds_distill.utils.console import log
from ds_distill.utils.errors import RankError, UserError

# Several ranks share the work of these commands. The work of the others is one process's.
MULTI_RANK_COMMANDS = ("run", "demo", "pretrain", "distill", "prune", "evaluate")
# These are the variables of a rank. The last one is among them because torchrun keeps the store in
# which ranks meet, and a process that makes a group of its own must not look for its store there.
RANK_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
)
SINGLE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
# DeepSpeed's launcher and torchrun set these beside them. They show that a rank's process was
# really started as one, which a pod's variables do not show.
LAUNCHER_VARIABLES = ("CROSS_RANK", "TORCHELASTIC_RUN_ID")
# DeepSpeed, and accelerate, which fine-tuning uses, take these for a rank's variables as well. A study's jobs must not.
MPI_VARIABLES = tuple(
    dict.fromkeys(
        (
            *(
                f"{start}_{end}"
                for start in ("OMPI_COMM_WORLD", "MV2_COMM_WORLD", "PMI")
                for end in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
            ),
            *schedulers.VARIABLES,
        )
    )
)
ACCELERATORS = ("cuda", "cpu", "xpu", "xpu.external", "npu", "mps", "hpu", "mlu", "sdaa")  # those DeepSpeed knows
REMEDY = (
    "a launcher (./launch.sh, deepspeed, torchrun) sets all of them; if they belong to another job, run the command "
    "with `env -u RANK -u WORLD_SIZE`"
)


def world_size() -> int:
    """Return the number of ranks of the job, once `normalize_environment` has checked the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def hide_gpus() -> None:
    """Have this process compute on the CPU. torch and DeepSpeed look for GPUs once, so this must come before."""
    os.environ["DS_ACCELERATOR"], os.environ["CUDA_VISIBLE_DEVICES"] = "cpu", ""


def gpu_index(local_rank: int, gpu_count: int) -> int:
    """Return the GPU of a rank among those that its process sees.

    Raises:
        UserError: There are fewer GPUs than ranks on this host.
    """
    if local_rank < gpu_count:
        return local_rank
    if gpu_count == 1 and not any(name in os.environ for name in LAUNCHER_VARIABLES):
        return 0  # a scheduler shows each process its own GPU alone, as srun --gpus-per-task=1 does
    # the other ranks of this host that have no GPU would say the same
    kind = RankError if local_rank == gpu_count else UserError
    raise kind(
        f"LOCAL_RANK = {local_rank}: only {gpu_count} GPUs are visible on this machine, 0 to {gpu_count - 1}; start "
        "at most one rank per GPU"
    )


def idle_gpus(gpu_count: int) -> str | None:
    """Return a sentence on the GPUs that this host's ranks leave idle, or None where none is."""
    ranks = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if os.environ["LOCAL_RANK"] != "0" or ranks >= gpu_count:
        return None
    return (
        f"{ranks} of the {gpu_count} GPUs of this machine {'are' if ranks > 1 else 'is'} used; "
        "./launch.sh starts one rank per GPU, and so must another launcher (see docs/cluster.md)"
    )


def normalize_environment(command: str) -> bool:
    """Make the environment consistent for `command`, and return whether this process has work to do.

    It must be called before anything else reads the environment. For a command of one process the
    variables of ranks are removed, whatever they are. A command that ranks share needs variables
    that fit together.

    Raises:
        UserError: The variables of a shared command do not fit together, or DS_ACCELERATOR is
            unknown.
    """
    _check_accelerator()
    if command in MULTI_RANK_COMMANDS:
        _check()
        return True
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    idle = rank not in ("", "0") and any(name in os.environ for name in LAUNCHER_VARIABLES)
    if not rank and (scheduler := schedulers.find_scheduler()):
        idle = os.environ[scheduler.rank] != "0"
    for name in (*RANK_VARIABLES, *MPI_VARIABLES, *(name for name in os.environ if name.startswith("ACCELERATE_"))):
        os.environ.pop(name, None)
    if not idle and (rank not in ("", "0") or world not in ("", "1")):
        settings = " and ".join(f"{name} = {value}" for name, value in (("RANK", rank), ("WORLD_SIZE", world)) if value)
        log(f"{settings} in the environment: ignored, because {command} runs in a single process")
    return not idle


def check_lone(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError where there is only one of the two variables that make a process one of several ranks."""
    rank, world = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if bool(rank) != bool(world) and (rank or "0", world or "1") != ("0", "1"):
        there, lacking = (("RANK", rank), "WORLD_SIZE") if rank else (("WORLD_SIZE", world), "RANK")
        raise UserError(f"{there[0]} = {there[1]} in the environment, but no {lacking}: {REMEDY}")


def _check() -> None:
    """Raise UserError where the environment describes no rank of a job; set all variables for a lone process."""
    try:
        if not os.environ.get("RANK") and not os.environ.get("WORLD_SIZE"):
            os.environ.update(schedulers.rank_variables())
        rank, world = _number("RANK"), _number("WORLD_SIZE")
        for name in MPI_VARIABLES:  # DeepSpeed would look there for this rank's place
            os.environ.pop(name, None)
        if (world or 1) == 1:
            if rank:
                raise UserError(
                    f"RANK = {rank} in the environment, but "
                    f"{'no WORLD_SIZE' if world is None else 'WORLD_SIZE = 1'}: {REMEDY}"
                )
            for name in RANK_VARIABLES:
                os.environ.pop(name, None)  # it may be the address of another job, or its GPU
            os.environ.update(SINGLE_PROCESS)
            return
        if lacking := [name for name in ("RANK", "MASTER_ADDR") if not os.environ.get(name)]:
            raise UserError(f"WORLD_SIZE = {world} in the environment, but no {' and no '.join(lacking)}: {REMEDY}")
        assert rank is not None and world is not None  # RANK is there, and world is neither None nor 1
        if rank >= world:
            raise UserError(
                f"RANK = {rank} in the environment: WORLD_SIZE = {world} has ranks 0 to {world - 1}; {REMEDY}"
            )
        for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
            _number(name)  # they are read later, and are refused here
        for name, usual in (("LOCAL_RANK", "0"), ("MASTER_PORT", "29500")):
            if _number(name) is None:
                os.environ[name] = usual
        if not 0 < int(os.environ["MASTER_PORT"]) < 65536:
            raise UserError(
                f"MASTER_PORT = {os.environ['MASTER_PORT']} in the environment: must be between 1 and 65535; {REMEDY}"
            )
    except UserError:
        os.environ.pop("RANK", None)  # this process is no rank now, so it reports the error itself
        raise


def _check_accelerator() -> None:
    """Raise UserError for a DS_ACCELERATOR unknown to DeepSpeed, which would fail late and with a traceback."""
    wanted = os.environ.get("DS_ACCELERATOR")
    if wanted is not None and wanted not in ACCELERATORS:
        raise UserError(
            f"DS_ACCELERATOR = {wanted} in the environment: must be one of {', '.join(ACCELERATORS)}; "
            "correct or unset it"
        )


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    if value and not schedulers.is_whole_number(value):
        raise UserError(f"{name} = {value} in the environment: must be a whole number; {REMEDY}")
    return int(value) if value else None
