"""The job that this process is a part of, by what a launcher, or something else, has put into its environment. Imports nothing that takes time."""

import os

from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError

SHARED = (
    "run",
    "pretrain",
    "distill",
)  # commands whose work several ranks do together; that of the others is one process's
# the last: torchrun keeps the store in which ranks meet, a process that makes a group of its own must not look for it there
RANK = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
)
LONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
# what DeepSpeed's launcher and torchrun set beside them: a rank's process was really started as one, which a pod's variables do not tell
LAUNCHED = ("CROSS_RANK", "TORCHELASTIC_RUN_ID")
# what accelerate, which fine-tuning goes through, takes for a rank's as well
MPI = tuple(
    f"{start}_{end}"
    for start in ("OMPI_COMM_WORLD", "MV2_COMM_WORLD", "PMI")
    for end in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
)
ACCELERATORS = ("cuda", "cpu", "xpu", "xpu.external", "npu", "mps", "hpu", "mlu", "sdaa")  # DeepSpeed's
REMEDY = "a launcher (./launch.sh, deepspeed, torchrun) sets them all; if they are another job's, run the command under `env -u RANK -u WORLD_SIZE`"


def ranks() -> int:
    """How many ranks the job has, once `settle` has had its look."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def settle(command: str) -> bool:
    """Whether this process has work to do. To be asked before anything else looks at the environment: a command of one process is made one, whatever
    the environment says, and one that ranks share needs variables that fit together (UserError)."""
    _check_accelerator()
    if command in SHARED:
        _check()
        return True
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    idle = rank not in ("", "0") and any(name in os.environ for name in LAUNCHED)
    for name in (*RANK, *MPI, *(name for name in os.environ if name.startswith("ACCELERATE_"))):
        os.environ.pop(name, None)
    if not idle and (rank not in ("", "0") or world not in ("", "1")):
        found = " and ".join(f"{name} = {value}" for name, value in (("RANK", rank), ("WORLD_SIZE", world)) if value)
        log(f"{found} in the environment: not read, {command} is the work of one process")
    return not idle


def _check() -> None:
    """UserError where the environment describes no rank of a job; a lone process is made one in every variable."""
    try:
        rank, world = _number("RANK"), _number("WORLD_SIZE")
        _forget_mpi(world)
        if (world or 1) == 1:
            if rank:
                raise UserError(
                    f"RANK = {rank} in the environment, but {'no WORLD_SIZE' if world is None else 'WORLD_SIZE = 1'}: {REMEDY}"
                )
            for name in RANK:
                os.environ.pop(name, None)  # the address of another job, or its GPU
            os.environ.update(LONE)
            return
        if lacking := [name for name in ("RANK", "MASTER_ADDR") if not os.environ.get(name)]:
            raise UserError(f"WORLD_SIZE = {world} in the environment, but no {' and no '.join(lacking)}: {REMEDY}")
        if rank >= world:
            raise UserError(
                f"RANK = {rank} in the environment: WORLD_SIZE = {world} has ranks 0 to {world - 1}; {REMEDY}"
            )
        for name, usual in (("LOCAL_RANK", "0"), ("MASTER_PORT", "29500")):
            if _number(name) is None:
                os.environ[name] = usual
        if not 0 < int(os.environ["MASTER_PORT"]) < 65536:
            raise UserError(
                f"MASTER_PORT = {os.environ['MASTER_PORT']} in the environment: a port lies between 1 and 65535; {REMEDY}"
            )
    except UserError:
        os.environ.pop("RANK", None)  # nobody's: what is wrong is said by this process
        raise


def _forget_mpi(world: int | None) -> None:
    """Take the variables of an mpirun away, in which DeepSpeed would look for this rank's place: RANK and WORLD_SIZE tell it."""
    found = {name: value for name in MPI if (value := os.environ.pop(name, None)) is not None}
    size = next(
        (
            int(value)
            for name, value in found.items()
            if name.endswith("_SIZE") and "LOCAL" not in name and value.isdecimal()
        ),
        1,
    )
    if size > 1 and world is None:
        names = " and ".join(f"{name} = {value}" for name, value in found.items() if "LOCAL" not in name)
        log(f"{names} in the environment: not read; this process is a job of its own ({REMEDY.partition(';')[0]})")


def _check_accelerator() -> None:
    """UserError for a DS_ACCELERATOR that DeepSpeed does not know: it would say so after a long import, with a traceback."""
    wanted = os.environ.get("DS_ACCELERATOR")
    if wanted is not None and wanted not in ACCELERATORS:
        raise UserError(
            f"DS_ACCELERATOR = {wanted} in the environment: must be one of {', '.join(ACCELERATORS)}; correct it, or unset it"
        )


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    if value and not (value.isascii() and value.isdecimal()):
        raise UserError(f"{name} = {value} in the environment: a number is expected; {REMEDY}")
    return int(value) if value else None
