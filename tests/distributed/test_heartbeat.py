"""A rank that is gone or stopped ends the job with one sentence; a slow rank does not."""

import re
import signal
import time

import pytest

from tests.start import Process, ds_distill, start_ranks, wait_for


@pytest.fixture
def ranks():
    """Start three living ranks with (patience, life, sentence, stalled, the rank that stands still)."""
    assert ds_distill("--help").returncode == 0  # loads the libraries, so that tests wait for the ranks alone
    running = []

    def start(patience: float, life: float, sentence: float = 0, stalled: float = 600, *still: int) -> list[Process]:
        running.extend(start_ranks(3, "tests.distributed.heartbeat_worker", patience, life, sentence, stalled, *still))
        for rank in running:
            wait_for(rank.out.read, rank)  # the rank reports that it lives
        return running

    yield start
    for rank in running:
        rank.kill()


def sentences(ranks: list[Process]) -> list[str]:
    errors = [rank.wait().stderr for rank in ranks]
    return [line for text in errors for line in text.splitlines() if line.startswith("ds-distill: ")]


@pytest.mark.promise("A silent rank is named once, and the whole job ends")
@pytest.mark.parametrize(
    "sentence", [0, pytest.param(5, marks=pytest.mark.long)], ids=["at once", "on a slow terminal"]
)
def test_a_stopped_rank_is_named_once_and_all_end(ranks, sentence):
    zero, one, two = ranks(16, 600, sentence)
    two.signal(signal.SIGSTOP)
    messages = sentences([zero, one])
    assert (
        len(messages) == 1
        and "rank 2" in messages[0]
        and "no heartbeat for 16 s" in messages[0]
        and "last checkpoint" in messages[0]
    )
    assert zero.poll() == one.poll() == 3


@pytest.mark.promise("A silent rank is named once, and the whole job ends")
def test_the_loss_of_the_first_rank_is_noticed_without_its_store(ranks):
    zero, one, two = ranks(16, 600)
    zero.signal(signal.SIGSTOP)
    messages = sentences([one, two])
    assert len(messages) == 1 and "no answer from the first rank" in messages[0]
    assert one.poll() == two.poll() == 3


@pytest.mark.promise("A slow rank is not taken for a lost one")
def test_a_slow_rank_and_a_proper_end_are_no_loss(ranks):
    every = ranks(30, 3)
    every[1].signal(signal.SIGSTOP)
    time.sleep(6)
    every[1].signal(signal.SIGCONT)
    assert not sentences(every)
    assert [rank.poll() for rank in every] == [0, 0, 0]


@pytest.mark.promise(
    "A rank that lives but makes no progress: the job prints where each rank is, and in the end it ends"
)
def test_a_rank_that_stands_still_is_reported_and_the_job_ends(ranks):
    said = sentences(ranks(60, 0.2, 0, 1, 1))
    # a busy machine may have reported the ranks' start too
    (*_, first), (last,) = ([line for line in said if words in line] for words in ("if this lasts", "last checkpoint"))
    assert "no rank has made progress for" in first and "no rank has made progress for" in last
    for message in (first, last):
        assert re.search(r"rank 1 in stand_still \(tests/distributed/heartbeat_worker.py, line \d+\)", message), message
        assert re.search(r"ranks 0, 2 in barrier \(torch/distributed/distributed_c10d.py, line \d+\)", message), message


@pytest.mark.long
@pytest.mark.promise("A slow rank is not taken for a lost one")
def test_progress_of_one_rank_is_progress_of_the_job(ranks):
    assert not sentences(ranks(60, 24, 0, 16))
