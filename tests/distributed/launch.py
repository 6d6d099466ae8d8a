import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_ranks(world: int, arguments: list[str], timeout: float = 300) -> str:
    """Run `python ARGUMENTS` as `world` gloo ranks on this machine; returns rank 0's standard output, fails with a failing rank's errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1",
                           "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}  # fmt: skip
    ranks = [
        subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        for r in range(world)
    ]
    try:
        results = [rank.communicate(timeout=timeout) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for number, (rank, (_, errors)) in enumerate(zip(ranks, results, strict=True)):
        assert rank.returncode == 0, f"rank {number} ended with {rank.returncode}:\n{errors[-4000:]}"
    return results[0][0]
