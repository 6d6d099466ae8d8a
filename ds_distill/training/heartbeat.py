"""A sign of life beside the collectives, whose own time limits are ten minutes and more: a lost rank or host ends the job within a minute."""

import os
import socket
import sys
import threading
import time
from datetime import timedelta

import torch

PATIENCE = 30.0  # seconds without a sign of life; a rank that is only slow still gives one
_EVERY = 2.0
_LOST = 3  # exit status


class Heartbeat:
    """Two threads a rank: one speaks through the job's own store (no further port), one watches the clock, since speaking may block for ever.

    A rank writes a count of its own and reads its neighbour's, so the store of a thousand ranks has three requests a rank in two seconds. Who finds
    its neighbour silent says so for all. Only the monotonic clock counts: a jump of the time of day does nothing.
    """

    def __init__(self, patience: float = PATIENCE):
        self.rank, self.world, self.patience = torch.distributed.get_rank(), torch.distributed.get_world_size(), patience
        self.neighbour = (self.rank + 1) % self.world
        store = torch.distributed.distributed_c10d._get_default_store()
        self.store = torch.distributed.PrefixStore("heartbeat", _own_connection(store))
        self.store.set(f"host {self.rank}", socket.gethostname())
        self.store.set(f"beat {self.rank}", "0")
        self.first_host, self.neighbour_host = (self.store.get(f"host {rank}").decode() for rank in (0, self.neighbour))
        self.store.get(f"beat {self.neighbour}")
        self.ended = threading.Event()
        self.answered = self.heard = time.monotonic()
        for work in (self._speak, self._watch):
            threading.Thread(target=work, name=f"heartbeat{work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """At the end of the job: silence means nothing any more."""
        self.ended.set()
        try:
            self.store.set(f"beat {self.rank}", "gone")
        except RuntimeError:
            pass  # the first rank, which keeps the store, was faster

    def _speak(self) -> None:
        count, last = 0, b""
        while not self.ended.wait(_EVERY):
            count += 1
            try:
                self.store.set(f"beat {self.rank}", str(count))
                beat = self.store.get(f"beat {self.neighbour}")
                verdict = self.store.check(["verdict"]) and self.store.get("verdict")
            except RuntimeError:
                continue  # _watch sees that no answer comes
            self.answered = time.monotonic()
            if beat != last or beat == b"gone":
                last, self.heard = beat, self.answered
            if verdict and verdict != str(self.rank).encode() and not self.ended.is_set():
                os._exit(_LOST)  # who gave the verdict says it, and ends by itself when it has

    def _watch(self) -> None:
        before = time.monotonic()
        while not self.ended.wait(1.0):
            now = time.monotonic()
            if now - before > 5:  # this process itself was stopped, or its machine: nobody else's silence
                self.answered = self.heard = now
            before = now
            if now - self.answered > self.patience:
                self._give_up()
            if now - self.heard > self.patience:
                ask = threading.Thread(target=self._accuse, daemon=True)  # the store may be silent too, and asking block for ever
                ask.start()
                ask.join(5 * _EVERY)
                self._give_up()  # not reached where the store answers

    def _accuse(self) -> None:
        if self.store.compare_set("verdict", "", str(self.rank)) == str(self.rank).encode():
            self._say(self._silence())
        time.sleep(_EVERY)  # the others read the verdict from the store, which may end with this rank
        os._exit(_LOST)

    def _give_up(self) -> None:
        # each host cut off says so once; on the first rank's own it is another that can, unless the first rank is there and only its store is silent
        if self.rank == 0:
            self._say(self._silence())
        elif os.environ.get("LOCAL_RANK", "0") == ("1" if self.first_host == socket.gethostname() else "0"):
            self._say(f"no answer from the first rank (host {self.first_host}) for {self.patience:.0f} s: its host or the network is down")
        os._exit(_LOST)

    def _silence(self) -> str:
        return f"rank {self.neighbour} (host {self.neighbour_host}) has given no sign of life for {self.patience:.0f} s"

    def _say(self, what: str) -> None:
        print(f"\nds-distill: {what}. The run ends; the same command goes on from its last checkpoint", file=sys.stderr, flush=True)


def _own_connection(store):
    """The same store on a connection of its own: a rank that waits on the shared one would be silent."""
    while isinstance(store, torch.distributed.PrefixStore):
        store = store.underlying_store
    own = store.clone()
    own.set_timeout(timedelta(seconds=60))
    return own
