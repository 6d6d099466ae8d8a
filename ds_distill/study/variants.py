"""The fine-tunings of a study: of the teacher, of each student, and further ones of a student by other settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from ds_distill.config.values import UserPath, mapping_reader
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.tasks.catalog import TASKS

TEACHER, TASK_DISTILLATION = "teacher", "task distillation"
# What each of these settings needs of a fine-tuning, which is refused without it: its key, value and name in words
NEEDS = {
    "match": ("task_distillation", True, "a fine-tuned teacher"),
    "layers_first": ("task_distillation", True, "a fine-tuned teacher"),
    "teacher_weights": ("teachers", "all", "several teachers"),
    "augmented_copies": ("augmented", True, "augmented texts"),
}
# These are the settings of a study's fine-tunings, for all tasks or, under a task's name, for that task.
TASK_SETTINGS = get_type_hints(FinetuneConfig, include_extras=True) | {"seeds": int}
ONE_TASK = Annotated[dict[str, Any], mapping_reader(TASK_SETTINGS, "settings")]
FINETUNE = Annotated[dict[str, Any], mapping_reader(TASK_SETTINGS | dict.fromkeys(TASKS, ONE_TASK), "settings")]


@dataclass
class Variant:
    """A fine-tuning of a model of the study, by settings of its own.

    Args:
        student: The student that is fine-tuned, or "teacher".
        task_distillation: Whether the fine-tuned teacher is used.
        teachers: Which fine-tuned teacher: of the study's, the model at the "median", or those of "all" seeds, whose
            soft targets are averaged; or a folder that has a model for each task under the task's name, such as
            TUNED/tasks of `ds-distill multitask`.
        augmented: Whether it also reads texts of `ds-distill augment`, which the teacher labels.
        finetune: The settings in which it differs, as the study's `finetune`.
    """

    student: str
    task_distillation: bool = False
    teachers: UserPath = "median"
    augmented: bool = False
    finetune: FINETUNE = field(default_factory=dict)

    def reads(self, setting: str) -> bool:
        """Return whether a setting of a fine-tuning concerns this one."""
        key, value, _ = NEEDS.get(setting, ("student", self.student, ""))
        return bool(getattr(self, key) == value)

    @property
    def teachers_folder(self) -> Path | None:
        """The folder of the tasks' teachers; None where they are the study's."""
        return None if self.teachers in ("median", "all") else Path(self.teachers)
