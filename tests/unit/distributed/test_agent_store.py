"""Test the name of an attempt: one for all its ranks, and never that of an earlier attempt in the same store."""

import threading
import uuid
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError, TCPStore

from ds_distill.distributed.agent_store import agree_on_name

PATIENT = timedelta(minutes=5)


def attempt(port: int, world: int) -> list[str]:
    """Return the name on which each of `world` ranks agrees; they arrive in any order."""
    names = [""] * world

    def join(rank: int) -> None:
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=PATIENT)
        names[rank] = agree_on_name(store, rank, world, PATIENT)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in reversed(range(world))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names


def test_attempts_have_names_of_their_own_whatever_dead_ones_left():
    keeper = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    seen = set()
    for world in (5, 3, 5):
        names = attempt(keeper.port, world)
        assert len(set(names)) == 1 and names[0] and names[0] not in seen
        seen.add(names[0])
        # ranks that die at either point of their question
        keeper.add("questions", 1)
        keeper.set(f"question {keeper.add('questions', 1)}", uuid.uuid4().hex)


def test_a_rank_that_never_comes_is_not_awaited_for_ever():
    keeper = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(DistStoreError, match="2 of 3 ranks have not come"):
        agree_on_name(keeper, 0, 3, timedelta(seconds=0.1))
    with pytest.raises(DistStoreError):
        agree_on_name(keeper, 1, 3, timedelta(seconds=0.1))
