"""One rank that does nothing but give its sign of life. Arguments: patience and length of life in seconds."""

import os
import sys
import time

import torch

from ds_distill.training.heartbeat import Heartbeat

torch.distributed.init_process_group("gloo")
heart = Heartbeat(patience=float(sys.argv[1]))
torch.distributed.barrier()
print(f"alive {os.environ['RANK']} {os.getpid()}", flush=True)
time.sleep(float(sys.argv[2]))
torch.distributed.barrier()
heart.stop()
print("end", flush=True)
