"""Run ds-distill, and ask the last rank to end within the held-out evaluation after a given number of steps.

python -m tests.end_to_end.interrupted_worker STEPS COMMAND OPTION…
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator

from ds_distill.cli.app import main
from ds_distill.data.batch import Batch
from ds_distill.distributed.launch_environment import world_size
from ds_distill.training.trainer import Trainer


def ask_after_the_first(batches: Iterable[Batch]) -> Iterator[Batch]:
    for number, batch in enumerate(batches):
        yield batch
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    steps, measure = int(sys.argv[1]), Trainer.measure
    if os.environ["RANK"] == str(world_size() - 1):
        Trainer.measure = lambda trainer, batches: measure(
            trainer, ask_after_the_first(batches) if trainer.state.step == steps else batches
        )
    raise SystemExit(main(sys.argv[2:]))
