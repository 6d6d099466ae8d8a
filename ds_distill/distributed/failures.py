"""Why the ranks of a job cannot work together: the cause in one sentence with its remedy, before what follows from it.

Each library reports a failed start in its own words, and the ranks that lose a neighbor by it report
their neighbor. This module imports nothing that takes time.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from ds_distill.distributed.host_names import unresolved_reason
from ds_distill.utils.console import log_once

WAIT = 6.0  # seconds in which the rank that failed first can end the others; their heartbeats ask every two


class Failure(NamedTuple):
    """Why a rank cannot go on.

    Attributes:
        sentence: The cause, the library's own last line, and the remedy.
        follows: Whether the end of another rank may be behind it, which reports its own cause.
    """

    sentence: str
    follows: bool = False


class _Cause(NamedTuple):
    """Words of an error in lower case as a pattern, what they mean, what helps, and this host's part in it."""

    words: str
    meaning: str
    remedy: str
    details: Callable[[], str] = lambda: ""
    follows: bool = False


def _interfaces(variable: str) -> str:
    names = ", ".join(name for _, name in socket.if_nameindex())
    return f" ({variable} = {os.environ.get(variable) or 'unset'}; this host has {names})"


def _first_rank() -> str:
    address, port = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if reason := unresolved_reason(address):
        return f" at {address}:{port}, since this host cannot resolve MASTER_ADDR = {address} ({reason})"
    return f" at MASTER_ADDR = {address}, MASTER_PORT = {port}"


_INTERFACE_REMEDY = "name the one that reaches the other hosts"
_CAUSES = (
    _Cause(
        "duplicate gpu detected",
        "two ranks use the same GPU",
        "start at most one rank per GPU, and let CUDA_VISIBLE_DEVICES name a different GPU for each rank of a host",
    ),
    _Cause(
        "/dev/shm|shared memory segment|nccl-shm",
        "shared memory is full or cannot be used",
        "give a container more than its usual 64 MB (docker run --ipc=host or --shm-size=8g, in Kubernetes an emptyDir "
        "with medium: Memory at /dev/shm); on a host, remove stale files from /dev/shm",
    ),
    _Cause(
        "client socket has (failed|timed out)",
        "the first rank cannot be reached",
        "it must have started, MASTER_ADDR must name its host, and MASTER_PORT a port that no firewall closes",
        _first_rank,
    ),
    _Cause(
        "server socket has failed|eaddrinuse|address already in use",
        "the first rank cannot listen at MASTER_PORT",
        "choose a free port above 1023, the same for all ranks",
        lambda: f" = {os.environ.get('MASTER_PORT', '')}",
    ),
    _Cause(
        "unable to find (address|interface) for|unable to resolve hostname",
        "gloo finds no network interface",
        f"{_INTERFACE_REMEDY} in GLOO_SOCKET_IFNAME",
        lambda: _interfaces("GLOO_SOCKET_IFNAME"),
    ),
    _Cause(
        "no socket interface found|no nccl_socket_ifname interface|neither af_inet",
        "NCCL finds no network interface",
        f"{_INTERFACE_REMEDY} in NCCL_SOCKET_IFNAME",
        lambda: _interfaces("NCCL_SOCKET_IFNAME"),
    ),
    _Cause("too many open files", "the limit on open files is reached", "raise it with ulimit -n"),
    _Cause("busy or unavailable", "the GPU is used by another process, or in exclusive mode", "choose a free one"),
    _Cause(
        "driver version is insufficient|found no nvidia driver|driver on your system is too old",
        "the NVIDIA driver does not fit this torch",
        "update the driver, or install a torch that is built for an older CUDA",
    ),
    _Cause("(mismatched nccl version|nccl version mismatch)", "the ranks' versions of NCCL differ", "install the same"),
    _Cause(
        "watchdog caught|timed out|wait timeout|timeout",
        "another rank did not answer in time",
        "see what that rank reports; the same command resumes from the last checkpoint",
        follows=True,
    ),
    _Cause(
        r"by (remote )?peer|connection (was )?(likely )?closed|broken pipe|remote process exit|ncclremoteerror",
        "another rank has ended or closed its connection, so this rank ends too",
        "the same command resumes from the last checkpoint",
        follows=True,
    ),
)
_COMMUNICATION = re.compile("nccl|gloo|c10d|by peer")
_WORDS = re.compile(f"{_COMMUNICATION.pattern}|cuda|nvidia")
_LIBRARY = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")


def explain_failure(error: BaseException) -> Failure | None:
    """Return why the ranks cannot work together, or None where the error is about something else."""
    line, lower = _last_line(str(error)), str(error).lower()
    if library := _LIBRARY.search(str(error)):
        return Failure(
            f"{library[1]} cannot be loaded: {line}; install the package that contains it, or add its folder to "
            "LD_LIBRARY_PATH"
        )
    if not isinstance(error, RuntimeError) or not (_is_of_torch_distributed(error) or _WORDS.search(lower)):
        return None
    for cause in _CAUSES:
        if re.search(cause.words, lower):
            return Failure(f"{cause.meaning}{cause.details()}: {line}; {cause.remedy}", cause.follows)
    if not _is_of_torch_distributed(error) and not _COMMUNICATION.search(lower):
        return None
    return Failure(f"the ranks cannot communicate: {line}; NCCL_DEBUG=INFO and --debug show more")


def report_failure(failure: Failure) -> None:
    """Print why this rank ends, once in a job.

    A rank whose failure follows from another's waits a moment for it: a rank that has printed the
    cause ends the others through their heartbeats, so that the cause is the only thing they leave.
    """
    if failure.follows:
        # a launcher ends the remaining ranks of a job by SIGTERM, and then nobody would say a thing
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(WAIT)
    line = f"\nds-distill: {_this_rank()}{failure.sentence}"
    if _has_store():
        log_once("failure", line)
    elif os.environ.get("LOCAL_RANK", "0") == "0":  # no store tells who has printed it
        print(line, file=sys.stderr, flush=True)


def _has_store() -> bool:
    """Return whether the job's store, which the first rank keeps, answers."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return False
    try:
        distributed.distributed_c10d._get_default_store().check(["failure"])
    except RuntimeError:
        return False
    return True


def _this_rank() -> str:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ""
    return f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}: "


def _last_line(text: str) -> str:
    """Return the last line of a library's message, without C++ frames and without the source file in front."""
    lines = re.split(r"\n(?:Exception raised from|frame #)", text)[0].splitlines()
    line = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return re.sub(r"^\[[^\]]*(?:\.cc|\.cpp|\.h)[^\]]*\] *", "", line).rstrip(".")


def _is_of_torch_distributed(error: RuntimeError) -> bool:
    return any(kind.__name__ == "DistError" for kind in type(error).__mro__)
