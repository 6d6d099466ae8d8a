"""What all fine-tuning runs of one command share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import Data, EncodedTask
from ds_distill.finetune.features import Collator
from ds_distill.finetune.teachers import TaskTeachers
from ds_distill.reporting.provenance import Provenance
from ds_distill.tasks.catalog import Task


@dataclass
class Plan:
    """The state that all runs of a plan share.

    Args:
        sets: The encoded sets by the settings that decide them, with the teachers' soft targets where there are
            teachers.
        layer_map: The teacher layer that each layer of a distilled student started from; None where its run is not
            there.
        origin: What the model cards tell of the model and the training.
    """

    data: Data
    model: str
    output: Path
    sets: dict[tuple, EncodedTask]
    collator: Collator
    teachers: TaskTeachers | None
    layer_map: list[int] | None
    device: torch.device
    origin: Provenance
    report_to: Sequence[str]

    @property
    def task(self) -> Task:
        """The task."""
        return self.data.task

    def encode_sets(self, point: FinetuneConfig) -> EncodedTask:
        """Return the encoded sets of a point of the grid."""
        return self.sets[sets_key(point)]


def sets_key(point: FinetuneConfig) -> tuple:
    """Return the settings that decide the encoded sets."""
    # The mean of several teachers' soft targets depends on the temperature.
    return point.max_length, point.max_train_samples, point.augmented_copies, point.temperature
