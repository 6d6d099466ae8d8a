"""A run on several tasks: what it is made of, and where its files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import Data, EncodedTask
from ds_distill.models.folder import ModelFolder
from ds_distill.multitask.settings import settings_read
from ds_distill.recipe import Recipe
from ds_distill.reporting.provenance import Provenance


@dataclass
class Run:
    """A run on several tasks.

    Args:
        teacher: The folder of the masked-LM model.
        output: The run's folder.
        data: The data of each task, by name.
        sets: The same as the model reads it.
        recipe: How text is masked and evaluated.
        tokens: The folder of prepared text.
        settings: Those of the training.
        mlm_fraction: The share of masked-LM steps.
        seed: The seed of heads, order and dropout.
        device: The device.
        precision: "fp32" or "bf16".
        origin: What the model cards tell of the model and the training.
    """

    teacher: ModelFolder
    output: Path
    data: dict[str, Data]
    sets: dict[str, EncodedTask]
    recipe: Recipe
    tokens: Path
    settings: FinetuneConfig
    mlm_fraction: float
    seed: int
    device: torch.device
    precision: str
    origin: Provenance

    def task_folder(self, name: str) -> Path:
        """Return the folder of a task's model."""
        return self.output / "tasks" / name

    def trained(self) -> dict[str, object]:
        """Return what summary and cards tell of how the run was trained."""
        return {
            "tasks": list(self.data),
            "seed": self.seed,
            "mlm_fraction": self.mlm_fraction,
            **settings_read(self.settings),
            "precision": self.precision,
        }
