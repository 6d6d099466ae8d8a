"""Run one rank that does nothing but give its sign of life.

Arguments, in seconds: patience, length of life, how long it takes to write a sentence, and the time
without progress after which that is reported. A last, optional argument is the rank that stands
still at the end.
"""

import os
import sys
import time

import torch

from ds_distill.distributed.heartbeat import Heartbeat
from ds_distill.utils.progress import note_progress


class Slow(Heartbeat):
    def _report(self, problem: str) -> None:
        time.sleep(float(sys.argv[3]))  # acts like a terminal that is slow to take the sentence
        super()._report(problem)


torch.distributed.init_process_group("gloo")
stalled = float(sys.argv[4])
store = torch.distributed.distributed_c10d._get_default_store()
rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
heart = Slow(store, rank, world, patience=float(sys.argv[1]), stalled=stalled, give_up=2 * stalled + 25)
torch.distributed.barrier()
print(f"alive {os.environ['RANK']} {os.getpid()}", flush=True)


def stand_still() -> None:
    time.sleep(600)


for _ in range(round(float(sys.argv[2]) * 5)):
    time.sleep(0.2)
    if os.environ["RANK"] == "0":  # hours of one rank's work, for which the others wait, count as the job's progress
        note_progress()
if sys.argv[5:] == [os.environ["RANK"]]:
    stand_still()
torch.distributed.barrier()
heart.stop()
print("end", flush=True)
