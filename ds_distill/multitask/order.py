"""The steps of a run on several tasks: which task each step trains on, and on which of its examples."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch.utils.data import Dataset

from ds_distill.data.batch import Batch
from ds_distill.data.loader import BatchLoader
from ds_distill.finetune.features import ByLength, Collator, Features
from ds_distill.tasks.catalog import MASKED_LM


def count_steps(examples: Mapping[str, int], batch: int, epochs: float, mlm_fraction: float) -> int:
    """Return the number of steps of a run.

    On the tasks there are as many as `epochs` passes over all of their examples take; those of masked LM come on top,
    such that they are the fraction `mlm_fraction` of all.
    """
    tasks = math.ceil(epochs * sum(math.ceil(count / batch) for count in examples.values()))
    return math.ceil(tasks / (1 - mlm_fraction))


def draw_probabilities(examples: Mapping[str, int], mlm_fraction: float) -> dict[str, float]:
    """Return the probability that a step is one of each task, or of masked LM.

    Those of the tasks are proportional to the square roots of their numbers of examples: in proportion to the
    numbers themselves, the smallest task would hardly be trained, and evenly it would be repeated most.
    """
    roots = {name: math.sqrt(count) for name, count in examples.items()}
    total = sum(roots.values())
    tasks = {name: (1 - mlm_fraction) * root / total for name, root in roots.items()}
    return tasks | ({MASKED_LM: mlm_fraction} if mlm_fraction else {})


class Steps(Dataset):
    """The batch of each step, a pure function of (seed, step).

    A task's own batches follow one another as in a run on that task alone with the same seed, epoch after epoch.

    Attributes:
        of_each: The number of steps of each task, and of masked LM where there is any.
    """

    def __init__(
        self,
        tasks: Mapping[str, Features],
        collator: Collator,
        *,
        batch: int,
        steps: int,
        seed: int,
        mlm_fraction: float = 0.0,
        masked: BatchLoader | None = None,
    ):
        """Draw the steps.

        Args:
            tasks: The training set of each task.
            collator: What makes tensors of examples.
            batch: The number of examples per step.
            steps: The number of steps.
            seed: The seed.
            mlm_fraction: The expected share of masked-LM steps.
            masked: The batches of masked LM, where mlm_fraction is above 0.
        """
        self.tasks, self.collator, self.batch, self.masked = tasks, collator, batch, masked
        chances = draw_probabilities({name: len(features) for name, features in tasks.items()}, mlm_fraction)
        self._names = list(chances)
        self._drawn = np.random.default_rng(seed).choice(len(chances), steps, p=list(chances.values()))
        self._number = np.zeros(steps, np.int64)  # how many steps of the same task came before
        for index in range(len(chances)):
            same = self._drawn == index
            self._number[same] = np.arange(same.sum())
        self.of_each = {name: int((self._drawn == index).sum()) for index, name in enumerate(self._names)}
        self._orders = {name: ByLength(features.lengths, batch, seed) for name, features in tasks.items()}
        self._rows: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self._drawn)

    def task(self, step: int) -> str:
        """Return the task of a step, or MASKED_LM."""
        return self._names[self._drawn[step]]

    def rows(self, step: int) -> list[int]:
        """Return the rows of its task's training set that a step trains on."""
        order = self._orders[name := self.task(step)]
        epoch, place = divmod(int(self._number[step]), math.ceil(len(order) / self.batch))
        if name not in self._rows or order.epoch != epoch:
            order.set_epoch(epoch)
            self._rows[name] = list(order)
        return self._rows[name][place * self.batch : (place + 1) * self.batch]

    def __getitem__(self, step: int) -> dict:
        name = self.task(step)
        if name != MASKED_LM:
            features = self.tasks[name]
            return {"task": name} | self.collator([features[row] for row in self.rows(step)])
        assert self.masked is not None  # there is a share of masked LM
        batch: Batch = self.masked.micro_batches(int(self._number[step]))[0]
        mask = {} if batch.token_mask is None else {"attention_mask": batch.token_mask.long()}
        return {"task": name, "input_ids": batch.input_ids, "labels": batch.labels} | mask


def take_batch(items: list[dict]) -> dict:
    """Return the one batch that a step consists of, as torch's collators are called."""
    return items[0]
