"""Each failure of a start is told by its cause, with the library's own last line and the remedy."""

import ctypes
import socket
from datetime import timedelta

import pytest
import torch

from ds_distill.distributed.failures import explain_failure
from ds_distill.utils.errors import is_disk_full

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {} (run with NCCL_DEBUG=INFO for details)"
FRAMES = (
    "\nException raised from getNCCLComm at ProcessGroupNCCL.cpp:1287 (most recent call first):\n"
    "frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x9d (0x7fbd0 in libc10.so)\n"
)


def nccl(kind: str, last: str) -> torch.distributed.DistBackendError:
    """Return an error as torch raises it for NCCL."""
    return torch.distributed.DistBackendError(f"{NCCL.format(kind)}\n{kind}: Call failed.\nLast error:\n{last}{FRAMES}")


def raised(function, *arguments, **options) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*arguments, **options)
    return caught.value


@pytest.mark.parametrize(
    "error, words",
    [
        (
            nccl("ncclInvalidUsage", "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"),
            ["two ranks use the same GPU: Duplicate GPU detected : rank 1 and rank 0", "CUDA_VISIBLE_DEVICES"],
        ),
        (
            nccl(
                "ncclSystemError",
                "Error while creating shared memory segment /dev/shm/nccl-WU88OE (size 9637888), error: No space left "
                "on device (28)",
            ),
            ["shared memory is full", "/dev/shm/nccl-WU88OE", "--shm-size", "medium: Memory"],
        ),
        (nccl("ncclInternalError", "Bootstrap : no socket interface found"), ["NCCL_SOCKET_IFNAME", "host has lo"]),
        (
            nccl("ncclUnhandledCudaError", "Cuda failure 802 'system not yet initialized'"),
            ["the ranks cannot communicate: Cuda failure 802 'system not yet initialized'; NCCL_DEBUG=INFO"],
        ),
        (
            RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
            ["the GPU is used by another process"],
        ),
        (RuntimeError("Found no NVIDIA driver on your system."), ["does not fit this torch"]),
        (ImportError("libnccl.so.2: cannot open shared object file: No such file"), ["libnccl.so.2 cannot be loaded"]),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value).partition("Last error:")[2][:20] or None,
)
def test_a_cause_is_told_with_its_own_last_line_and_the_remedy(error, words):
    failure = explain_failure(error)
    assert all(word in failure.sentence for word in words), failure.sentence
    assert not failure.follows and "another rank has ended" not in failure.sentence
    assert "\n" not in failure.sentence and "frame #" not in failure.sentence


def test_causes_of_torchs_own_stores_and_sockets(monkeypatch):
    """Errors that torch and gloo really raise here."""
    unknown = f"{70 * 'a'}.invalid"  # which is known without asking anybody
    monkeypatch.setenv("MASTER_ADDR", unknown)
    monkeypatch.setenv("MASTER_PORT", "29500")
    soon = timedelta(seconds=1)
    error = raised(torch.distributed.TCPStore, unknown, 29500, is_master=False, timeout=soon)
    assert f"cannot resolve MASTER_ADDR = {unknown} (a part of the name is empty" in explain_failure(error).sentence
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        error = raised(torch.distributed.TCPStore, "127.0.0.1", port, is_master=True, timeout=soon)
    assert f"cannot listen at MASTER_PORT = {port}: " in explain_failure(error).sentence
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    error = raised(torch.distributed.ProcessGroupGloo, torch.distributed.HashStore(), 0, 2, soon)
    sentence = explain_failure(error).sentence
    assert "GLOO_SOCKET_IFNAME = nosuch0; this host has lo" in sentence
    assert "Unable to find address for: nosuch0" in sentence
    failure = explain_failure(raised(ctypes.CDLL, "libnccl.so.77"))
    assert failure.sentence.startswith("libnccl.so.77 cannot be loaded")


def test_only_a_closed_connection_is_told_as_another_ranks_end():
    closed = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.3]:18864."
    for error in (
        RuntimeError(closed),
        nccl("ncclRemoteError", "remote process exited or there was a network error"),
        torch.distributed.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
    ):
        failure = explain_failure(error)
        assert failure.follows and failure.sentence.startswith("another rank has ended or closed its connection")
    assert "Connection closed by peer [10.0.0.3]:18864; the same" in explain_failure(RuntimeError(closed)).sentence


def test_other_errors_are_left_alone_and_shared_memory_is_no_disk():
    assert explain_failure(RuntimeError("shape '[2]' is invalid for input of size 3")) is None
    assert explain_failure(RuntimeError("CUDA error: device-side assert triggered")) is None
    assert explain_failure(ValueError("nccl")) is None
    assert is_disk_full(RuntimeError("write failed: No space left on device"))
    assert not is_disk_full(RuntimeError("unable to write to file </torch_7_1>: /dev/shm: No space left on device"))
