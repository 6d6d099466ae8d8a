"""A job that fails leaves one sentence: the cause, from the rank that has it."""

import pytest

from tests.start import start_ranks

DUPLICATE = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:275, invalid usage\nLast error:\n"
    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"
)


@pytest.mark.promise("A failed start: the cause is the only thing that the ranks print, once")
@pytest.mark.parametrize(
    "failing, text, words",
    [
        ("0", DUPLICATE, "two ranks use the same GPU: Duplicate GPU detected : rank 1 and rank 0"),
        ("1", DUPLICATE, "two ranks use the same GPU: Duplicate GPU detected : rank 1 and rank 0"),
        ("0,1,2", DUPLICATE, "two ranks use the same GPU: Duplicate GPU detected : rank 1 and rank 0"),
        ("2", "exit", "another rank has ended or closed its connection"),
    ],
    ids=["of the first rank", "of another rank", "of all ranks", "a rank that is killed"],
)
def test_only_the_cause_is_printed(failing, text, words):
    results = [rank.wait() for rank in start_ranks(3, "tests.distributed.failure_worker", failing, text)]
    lines = [line for done in results for line in done.stderr.splitlines() if line and not line.startswith("loading ")]
    lines = [line for line in lines if "is waiting for the other ranks" not in line]  # as on a busy machine
    assert len(lines) == 1 and words in lines[0], lines
    assert all(done.returncode for done in results)
