"""The settings of a run on several tasks, which are some of those of a run on one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.utils.errors import UserError

# An epoch is a pass over the examples of all tasks together. They pull the encoder in several directions, and need a
# higher rate and more epochs than one task does.
DEFAULTS = FinetuneConfig(learning_rate=1e-4, epochs=4.0)
READ = (
    "learning_rate",
    "epochs",
    "batch_size",
    "max_length",
    "warmup_ratio",
    "weight_decay",
    "max_train_samples",
    "dropout",
    "precision",
)


def settings_read(settings: FinetuneConfig) -> dict[str, object]:
    """Return the settings that a run on several tasks reads, by name."""
    return {name: getattr(settings, name) for name in READ}


def check_settings(settings: FinetuneConfig, tasks: Sequence[str], mlm_fraction: float, seed: int) -> None:
    """Raise UserError for a value that makes no sense, or a setting that is not read."""
    settings.check()
    for name, value in asdict(settings).items():
        if name not in READ and value != getattr(DEFAULTS, name):
            raise UserError(f"finetune.{name} = {value}: multitask does not read it; leave it out")
    if not tasks:
        raise UserError("--tasks is missing; give the tasks to tune on, such as rte sst2 squad")
    if twice := [name for name in tasks if list(tasks).count(name) > 1]:
        raise UserError(f"--tasks {' '.join(tasks)}: {twice[0]} is given twice; give each task once")
    if not 0 <= mlm_fraction < 1:
        raise UserError(
            f"--mlm_fraction {mlm_fraction}: must be a share of the steps, at least 0 and below 1, such as 0.25"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: must be between 0 and 2^32 − 1")
