"""Run the ranks of one host in a simulated job: the store, the heartbeats, the order and the shares, and no model.

Arguments: RANKS of this host, PATIENCE in seconds, a folder of tokens or "", the global batch, the micro-batch, and
for ranks that take steps the number of the host that hangs in the twentieth.
HOST, HOSTS and MASTER_PORT are in the environment; host 0 keeps the store, as rank 0 does.
"""

import json
import os
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from torch.distributed import TCPStore

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import BatchLoader
from ds_distill.data.masking import Masker
from ds_distill.distributed.heartbeat import Heartbeat
from ds_distill.utils.open_files import allow_open_files
from ds_distill.utils.step_clock import STEPS

STEPS_SHOWN, SOFT_LIMIT = (0, 1, 2), 256


def hang() -> None:
    time.sleep(3600)


def meet(place: str, pause: float = 0.5) -> None:
    """Wait until every host is there."""
    store.add(place, 1)
    while store.add(place, 0) < hosts:
        time.sleep(pause)


ranks, patience, tokens, batch, micro, *rest = sys.argv[1:]
host, hosts = int(os.environ["HOST"]), int(os.environ["HOSTS"])
mine, world = range(host * int(ranks), (host + 1) * int(ranks)), hosts * int(ranks)
resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT_LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
allow_open_files(4 * world)
store = TCPStore("127.0.0.1", int(os.environ["MASTER_PORT"]), is_master=host == 0, wait_for_workers=False)
meet("come")  # as ranks do when they make their process group
connections = [store.clone() for _ in mine]  # each rank has one, beside its heartbeat's
with ThreadPoolExecutor(len(mine)) as pool:  # each waits for its neighbor
    hearts = list(pool.map(lambda c, rank: Heartbeat(c, rank, world, float(patience)), connections, mine))
shares = {}
if tokens:
    data = TokenDataset.open(tokens)
    masker = Masker(data.token_counts, [0, 1, 2, 3, 4], 4, len(data.token_counts), 0)
    for rank in mine:
        loader = BatchLoader(
            data, masker, seed=0, global_batch_size=int(batch), micro_batch_size=int(micro), rank=rank, world_size=world
        )
        shares[rank] = [np.concatenate(loader.rank_entries(step)).tolist() for step in STEPS_SHOWN]
meet("ready")
files = len(os.listdir("/proc/self/fd"))
print(
    json.dumps({"files": files, "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0], "shares": shares}), flush=True
)
if rest:
    STEPS.least = 8.0
    for step in range(1, 1000):
        STEPS.begin(step)
        if step == 20 and host == int(rest[0]):
            hang()
        STEPS.finish_part()
        meet(f"step {step}", 0.02)  # as in an all-reduce
        STEPS.end()
time.sleep(3600)
