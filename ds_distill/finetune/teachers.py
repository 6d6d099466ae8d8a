"""The fine-tuned teachers of a task distillation, and the soft targets that they give to a training set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ds_distill.config.losses import normalize_weights
from ds_distill.data.tokenizer import tokenizer_fingerprint
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import digest
from ds_distill.finetune.features import Collator, Features
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.predict import predict, read_outputs, write_outputs
from ds_distill.losses.task_distillation import mean_soft_targets
from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.tasks.catalog import Task
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import remove


class TaskTeachers:
    """One or several models that are fine-tuned on a task.

    A student learns the mean of their soft targets. What lies inside it is compared with the first teacher alone,
    because the hidden states of several have no common basis.

    Attributes:
        models: The models, frozen, in evaluation mode.
    """

    def __init__(self, paths: Sequence[str], task: Task):
        """Load the models of `paths`; raise UserError for one that is not fine-tuned on the task."""
        self.paths, self.task = list(paths), task
        self.models: list[PreTrainedModel] = [
            load_for_task(path, task, "teacher", tuned=True).eval().requires_grad_(False) for path in paths
        ]

    @property
    def first(self) -> PreTrainedModel:
        """The teacher that the inside of a student is compared with."""
        return self.models[0]

    @property
    def positions(self) -> int:
        """The most tokens that all of them read."""
        return min(get_family(model).positions(model.config) for model in self.models)

    @cached_property
    def fingerprints(self) -> list[str]:
        """A fingerprint of each teacher's weights."""
        return [weights_fingerprint(model)[:16] for model in self.models]

    def check_same_tokenizer(self, student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raise UserError if a teacher's token ids mean something else."""
        for path, model in zip(self.paths, self.models, strict=True):
            folder = find_model_folder(path, "--teacher")
            other = folder.has_tokenizer and tokenizer_fingerprint(folder.tokenizer) != tokenizer_fingerprint(tokenizer)
            if other or model.config.vocab_size < student.config.vocab_size:
                raise UserError(
                    f"--teacher {path}: its tokenizer differs from the student's; give a teacher with the same "
                    "vocabulary"
                )

    def to(self, device: torch.device) -> None:
        """Move the models to a device."""
        for model in self.models:
            model.to(device)  # type: ignore[arg-type]  # wrong in transformers

    def make_soft_targets(
        self, features: Features, collator: Collator, settings: FinetuneConfig, folder: Path
    ) -> list[np.ndarray]:
        """Return the soft targets of each row, in the form of one teacher's outputs, fp32.

        Args:
            features: The training set.
            collator: What makes batches of it.
            settings: The batch size, the temperature and the teachers' weights are read from it.
            folder: Where each teacher's outputs are kept.
        """
        batch, count = 2 * settings.batch_size, len(self.models)
        outputs = [
            _predict_once(
                model,
                fingerprint,
                features,
                collator,
                batch,
                folder,
                "computing the teacher's outputs"
                if count == 1
                else f"computing the outputs of teacher {number} of {count}",
            )
            for number, (model, fingerprint) in enumerate(zip(self.models, self.fingerprints, strict=True), 1)
        ]
        if count == 1:
            return outputs[0]
        weights = normalize_weights(settings.teacher_weights, count, "finetune.teacher_weights")
        by_shape: dict[tuple[int, ...], list[int]] = {}  # for half a million rows, one by one takes minutes
        for number, row in enumerate(outputs[0]):
            by_shape.setdefault(row.shape, []).append(number)
        means: dict[int, np.ndarray] = {}
        with spinner(f"averaging the outputs of {count} teachers"):
            for numbers in by_shape.values():
                rows = mean_soft_targets(
                    np.stack([[of_teacher[number] for number in numbers] for of_teacher in outputs]),
                    weights,
                    temperature=settings.temperature,
                    class_dim=1 if self.task.tokens else -1,
                    regression=self.task.regression,
                    multi_label=self.task.multi_label,
                )
                means |= zip(numbers, rows, strict=True)
        return [means[number] for number in range(len(outputs[0]))]


def _predict_once(
    model: PreTrainedModel,
    fingerprint: str,
    features: Features,
    collator: Collator,
    batch: int,
    folder: Path,
    description: str,
) -> list[np.ndarray]:
    """Return a teacher's outputs, as of `predict`, which are kept under fingerprints of the teacher and its inputs.

    A computation that is stopped loses at most the last minute, and the next one completes it.
    """
    name = f"{fingerprint}-{digest(zip(*features.inputs.values(), strict=True))}"
    file, parts = folder / f"{name}.outputs.safetensors", folder / f"{name}.parts"
    if not file.is_file():
        write_outputs(file, predict(model, features, collator, batch, description, parts))
        remove(parts)
    return read_outputs(file)
