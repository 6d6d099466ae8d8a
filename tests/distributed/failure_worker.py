"""Run one rank of a command that fails on the ranks of the first argument: by an error, or by "exit" at once.

The second argument is the error's text, a RuntimeError's. The other ranks are in a collective meanwhile.
"""

import os
import sys

import torch

from ds_distill.cli import app
from ds_distill.distributed.process_group import start_distributed


def run(options) -> dict:
    start_distributed()
    torch.distributed.barrier()
    if os.environ["RANK"] in failing.split(","):
        if text == "exit":
            os._exit(9)
        raise RuntimeError(text)
    torch.distributed.barrier()
    return {}


failing, text = sys.argv[1:]
app.COMMANDS["distill"].run = run
raise SystemExit(app.main(["distill", "--teacher", "x", "--corpus", "x", "--output", "x"]))
