"""Run ds-distill, and signal the last rank at a point of the run that does not depend on how busy the machine is.

python -m tests.end_to_end.interrupted_worker SIGNAL WHERE STEPS COMMAND OPTION…

SIGNAL is a name such as SIGTERM. WHERE is evaluation, for the held-out evaluation after a number of steps, or step, for
the step after them.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator

from ds_distill.cli.app import main
from ds_distill.data.batch import Batch
from ds_distill.distributed.launch_environment import world_size
from ds_distill.training.trainer import Trainer


def signal_after_the_first(batches: Iterable[Batch], number: int) -> Iterator[Batch]:
    for index, batch in enumerate(batches):
        yield batch
        if index == 0:
            os.kill(os.getpid(), number)


def signal_at(where: str, steps: int, number: int) -> None:
    measure, train_step = Trainer.measure, Trainer.train_step

    def measure_and_signal(trainer, batches):
        return measure(trainer, signal_after_the_first(batches, number) if trainer.state.step == steps else batches)

    def signal_and_train(trainer, step, *arguments):
        if step == steps:
            os.kill(os.getpid(), number)
        return train_step(trainer, step, *arguments)

    if where == "evaluation":
        Trainer.measure = measure_and_signal
    else:
        Trainer.train_step = signal_and_train


if __name__ == "__main__":
    name, where, steps, *words = sys.argv[1:]
    if os.environ.get("RANK", "0") == str(world_size() - 1):
        signal_at(where, int(steps), signal.Signals[name])
    raise SystemExit(main(words))
