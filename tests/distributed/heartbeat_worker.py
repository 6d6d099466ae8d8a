"""One rank that does nothing but give its sign of life. Arguments: patience, length of life and how long a sentence takes, in seconds."""

import os
import sys
import time

import torch

from ds_distill.training.heartbeat import Heartbeat


class Slow(Heartbeat):
    def _say(self, what: str) -> None:
        time.sleep(float(sys.argv[3]))  # a terminal that is slow to take it
        super()._say(what)


torch.distributed.init_process_group("gloo")
heart = Slow(patience=float(sys.argv[1]))
torch.distributed.barrier()
print(f"alive {os.environ['RANK']} {os.getpid()}", flush=True)
time.sleep(float(sys.argv[2]))
torch.distributed.barrier()
heart.stop()
print("end", flush=True)
