"""The store in which torchrun's ranks meet; it outlives them, so each attempt needs a part of its own.

torchrun's agent keeps the store through restarts, and what a dead attempt wrote is still there: the
addresses of its ranks, at which gloo and NCCL would look for the new ones, and its heartbeats. The
count of restarts does not tell attempts apart, since it stays the same where a node joins or leaves.
"""

import os
import time
import uuid
from datetime import timedelta

from torch.distributed import DistStoreError, PrefixStore, Store, TCPStore

_POLL = 0.02  # seconds


def uses_agent_store() -> bool:
    """Return whether an agent, and no rank, keeps the store of this job."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def join_attempt(rank: int, world: int, timeout: timedelta) -> Store:
    """Collective: return the part of the agent's store that belongs to this attempt alone.

    Args:
        rank: The rank of this process.
        world: The number of ranks.
        timeout: How long to wait for the other ranks.

    Raises:
        DistStoreError: A rank has not come.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timeout)
    return PrefixStore(agree_on_name(PrefixStore("attempts", store), rank, world, timeout), store)


def agree_on_name(store: Store, rank: int, world: int, timeout: timedelta) -> str:
    """Collective: return a name that the first rank has drawn, the same on every rank that lives.

    Each other rank asks with a number of its own, so no answer to a dead rank can reach it, and the
    first rank answers until all have read its name.

    Args:
        store: A store that may hold the questions and answers of earlier attempts.
        rank: The rank of this process.
        world: The number of ranks.
        timeout: How long to wait for the other ranks.

    Raises:
        DistStoreError: A rank has not come.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"question {store.add('questions', 1)}", own)
        store.wait([f"answer {own}"], timeout)
        name = store.get(f"answer {own}").decode()
        store.add(f"read {name}", 1)
        return name
    deadline, asked, waiting = time.monotonic() + timeout.total_seconds(), 0, set[str]()
    while (read := store.add(f"read {own}", 0)) < world - 1:
        if time.monotonic() > deadline:
            raise DistStoreError(f"{world - 1 - read} of {world} ranks have not come")
        last, asked = asked, store.add("questions", 0)
        waiting |= {f"question {number}" for number in range(last + 1, asked + 1)}
        for question in sorted(waiting):  # a rank may have died between its count and its question
            if store.check([question]):
                store.set(f"answer {store.get(question).decode()}", own)
                waiting.remove(question)
        time.sleep(_POLL)
    return own
