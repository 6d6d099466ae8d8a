"""A sign of life beside the collectives: a lost rank or host ends the job within a minute.

The collectives' own time limits are ten minutes and more. Ranks that live but make no progress are
found too: where no rank notes progress for minutes, the place where each of them is gets printed.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import PrefixStore, Store

from ds_distill.utils.errors import LOST_STATUS
from ds_distill.utils.progress import main_thread_position, progress_count
from ds_distill.utils.step_clock import STEPS

PATIENCE = 30.0  # seconds without a heartbeat; a rank that is only slow still sends one
STALLED = 300.0  # seconds without progress on any rank, until each rank's place is printed
GIVE_UP = 3600.0  # until the job ends; nothing in a job takes an hour without noting progress
_EVERY = 2.0
_MISTAKE = 2  # exit status where another rank has reported why it ends
_FAILED = "failed"  # begins the verdict of a rank that ends by itself, and says why
NAMED = 8  # the most ranks that a sentence names


class Heartbeat:
    """Two threads per rank: one speaks through the job's own store, one watches the clock.

    The store needs no further port. The clock has its own thread because speaking may block
    forever. A rank writes a count of its own and how far it is in its step, reads its neighbor's, adds
    to the job's count of progress and looks for a verdict and for a request of its stacks, so the
    store of a thousand ranks serves five requests per rank in two seconds. A rank that finds its
    neighbor silent reports it for all, and one whose step is overdue names the ranks that are behind.
    Only the monotonic clock counts, so a jump of the time of day has no effect.

    Args:
        store: The store of the job.
        rank: This rank.
        world: The number of ranks.
        patience: Seconds without a sign of life after which a rank is lost.
        stalled: Seconds without progress on any rank until each rank's place is printed.
        give_up: Seconds without progress until the job ends.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world: int,
        patience: float = PATIENCE,
        stalled: float = STALLED,
        give_up: float = GIVE_UP,
    ):
        self.rank, self.world, self.patience = rank, world, patience
        self.neighbor = (rank + 1) % world
        self.store = PrefixStore("heartbeat", _clone_store(store))
        self.store.set(f"host {self.rank}", socket.gethostname())
        self.store.set(f"beat {self.rank}", "0")
        self.first_host, self.neighbor_host = (self.store.get(f"host {rank}").decode() for rank in (0, self.neighbor))
        self.store.get(f"beat {self.neighbor}")
        self.ended = threading.Event()
        self.stalled, self.give_up, self.reported = stalled, give_up, False
        self.overdue_step = 0  # the last step that this rank has found overdue
        self.sent, self.total = 0, 0  # progress: this rank's part of the job's count, and the job's count
        self.last_answer = self.last_beat = self.last_progress = time.monotonic()
        for work in (self._send, self._watch):
            threading.Thread(target=work, name=f"heartbeat{work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Stop the heartbeat at the end of the job; from then on silence means nothing."""
        self.ended.set()
        try:
            self.store.set(f"beat {self.rank}", "gone")
        except RuntimeError:
            pass  # the first rank, which keeps the store, was faster

    def _send(self) -> None:
        count, last = 0, b""
        while not self.ended.wait(_EVERY):
            count += 1
            try:
                self.store.set(f"beat {self.rank}", "{} {} {}".format(count, *STEPS.position()))
                beat = self.store.get(f"beat {self.neighbor}")
                verdict = self.store.check(["verdict"]) and self.store.get("verdict")
                self._look_at_progress()
                self._look_at_step()
            except RuntimeError:
                continue  # _watch sees that no answer comes
            self.last_answer = time.monotonic()
            if beat != last or beat == b"gone":
                last, self.last_beat = beat, self.last_answer
            if verdict and verdict != str(self.rank).encode() and not self.ended.is_set():
                # the rank that gave the verdict reports it, and then ends by itself; a lost rank reads none
                failed = verdict.startswith(_FAILED.encode())
                self._leave(self.world if failed else self.world - 1, _MISTAKE if failed else LOST_STATUS)

    def end_job(self) -> None:
        """End the other ranks without a word, since this one has printed why it ends.

        The first rank keeps the store until they know it, or for ten seconds.
        """
        if self.ended.is_set():
            return
        self.ended.set()
        with contextlib.suppress(RuntimeError):  # the store is gone
            self.store.compare_set("verdict", "", f"{_FAILED} {self.rank}")
        self._wait_until_read(self.world)

    def _look_at_step(self) -> None:
        """Name the ranks that are behind where a step is overdue; show this rank's stacks where it is one of them."""
        seconds, step = STEPS.overdue(), STEPS.position().step
        if seconds is not None and step != self.overdue_step:
            self.overdue_step = step
            if self.store.compare_set(f"overdue {step}", "", str(self.rank)) == str(self.rank).encode():
                self._name_ranks_behind(seconds)
        if self.store.check([f"stacks {self.rank}"]) and self.store.delete_key(f"stacks {self.rank}"):
            print(
                f"\nds-distill: stacks of rank {self.rank} (host {socket.gethostname()}):", file=sys.stderr, flush=True
            )
            faulthandler.dump_traceback(2)

    def _name_ranks_behind(self, seconds: float) -> None:
        beats = self.store.multi_get([f"beat {rank}" for rank in range(self.world)])
        behind = find_ranks_behind([beat.decode() for beat in beats])
        hosts = self.store.multi_get([f"host {rank}" for rank in behind[:NAMED]])
        names = ", ".join(f"{rank} (host {host.decode()})" for rank, host in zip(behind, hosts, strict=False))
        if not behind:
            who = "no rank is behind the others, so the network or a device hangs"
        elif len(behind) > NAMED:
            who = f"ranks {names} and {len(behind) - NAMED} more are behind the others"
        else:
            who = f"rank {names} is behind the others" if len(behind) == 1 else f"ranks {names} are behind the others"
        for rank in behind[:NAMED]:
            self.store.set(f"stacks {rank}", "wanted")
        print(
            f"\nds-distill: step {STEPS.position().step} has not ended for {seconds:.0f} s, where one takes "
            f"{STEPS.median():.2g} s: {who}",
            file=sys.stderr,
            flush=True,
        )

    def _look_at_progress(self) -> None:
        done, now = progress_count(), time.monotonic()
        total = self.store.add("progress", done - self.sent)
        self.sent = done
        if total != self.total:
            self.total, self.last_progress, self.reported = total, now, False
            return
        silent = now - self.last_progress
        if silent > self.stalled:
            self.store.set(f"place {self.rank}", main_thread_position())
        # wait until the others have written their places
        if self.rank or silent <= self.stalled + 3 * _EVERY:
            return
        if silent > self.give_up:
            if self.store.compare_set("verdict", "", "0") == b"0":
                self._report(f"no rank has made progress for {silent / 60:.0f} min ({self._places()})")
            self._leave(self.world)
        if not self.reported:
            self.reported = True
            print(
                f"\nds-distill: no rank has made progress for {silent / 60:.0f} min: {self._places()}. "
                f"The run ends if this lasts {self.give_up / 60:.0f} min",
                file=sys.stderr,
                flush=True,
            )

    def _places(self) -> str:
        """Return where the ranks are, grouped by place."""
        ranks_at: dict[str, list[str]] = {}
        for rank in range(self.world):
            key = f"place {rank}"
            place = self.store.get(key).decode() if self.store.check([key]) else "at an unknown place"
            ranks_at.setdefault(place, []).append(str(rank))
        return "; ".join(
            f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)} {place}" for place, ranks in ranks_at.items()
        )

    def _watch(self) -> None:
        last_check = time.monotonic()
        while not self.ended.wait(1.0):
            now = time.monotonic()
            if now - last_check > 5:  # this process itself was stopped, or its machine; no other rank was silent
                self.last_answer = self.last_beat = self.last_progress = now
            last_check = now
            if now - self.last_answer > self.patience:
                self._abort()
            if now - self.last_beat > self.patience:
                # in a thread: the store may be silent too, and asking it block forever
                reporter = threading.Thread(target=self._report_lost_neighbor, daemon=True)
                reporter.start()
                reporter.join(5 * _EVERY)
                self._abort()  # not reached where the store answers

    def _report_lost_neighbor(self) -> None:
        if self.store.compare_set("verdict", "", str(self.rank)) == str(self.rank).encode():
            self._report(self._describe_silence())
        self._leave(self.world - 1)

    def _leave(self, living: int, status: int = LOST_STATUS) -> None:
        """End this rank, after it has let `living` ranks read the verdict."""
        self._wait_until_read(living)
        os._exit(status)

    def _wait_until_read(self, living: int) -> None:
        """Note that this rank knows the verdict; the first rank waits for `living` ranks, or ten seconds.

        The first rank keeps the store, where the others read the verdict.
        """
        until = time.monotonic() + 5 * _EVERY
        with contextlib.suppress(RuntimeError):  # the store is gone
            read = self.store.add("read", 1)
            while self.rank == 0 and read < living and time.monotonic() < until:
                time.sleep(0.1)
                read = self.store.add("read", 0)

    def _abort(self) -> None:
        # Each host that is cut off reports it once. On the first rank's own host another rank can
        # report it, unless the first rank is there and only its store is silent.
        if self.rank == 0:
            self._report(self._describe_silence())
        elif os.environ.get("LOCAL_RANK", "0") == ("1" if self.first_host == socket.gethostname() else "0"):
            self._report(
                f"no answer from the first rank (host {self.first_host}) for {self.patience:.0f} s: "
                "its host or the network is down"
            )
        os._exit(LOST_STATUS)

    def _describe_silence(self) -> str:
        return f"rank {self.neighbor} (host {self.neighbor_host}) has sent no heartbeat for {self.patience:.0f} s"

    def _report(self, problem: str) -> None:
        print(
            f"\nds-distill: {problem}. The run ends; the same command resumes from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )


def find_ranks_behind(beats: Sequence[str]) -> list[int]:
    """Return the ranks that are less far in their steps than the others, by their beats; none where all are as far.

    Args:
        beats: By rank, "COUNT STEP PARTS", or "gone".
    """
    places = {rank: tuple(map(int, beat.split()[1:])) for rank, beat in enumerate(beats) if len(beat.split()) == 3}
    farthest = max(places.values(), default=())
    return [rank for rank, place in places.items() if place < farthest]


def _clone_store(store):
    """Return the same store on its own connection: a rank that waits on the shared one would be silent.

    It keeps the prefix, since what lies outside may be an earlier attempt's.
    """
    clone = store.clone()
    clone.set_timeout(timedelta(seconds=60))
    return clone
