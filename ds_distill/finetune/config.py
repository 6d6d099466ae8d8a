"""The settings of a fine-tuning run, and the grid of such settings."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from ds_distill.config.values import convert
from ds_distill.utils.errors import UserError

LEAST_LENGTH = 6  # tokens
PRECISIONS = Literal["auto", "fp32", "bf16"]


@dataclass
class FinetuneConfig:
    """How one run is trained.

    Args:
        learning_rate: Peak; linear warm-up, then linear to zero. DistilBERT's authors take 5e-5 for
            SQuAD.
        epochs: Passes over the training set.
        batch_size: Examples a step.
        max_length: Tokens an example at most, never more than the model has positions; 0: 128, and of
            SQuAD 384, in parts that overlap by 128, as in transformers' run_qa. The saved folder's
            tokenizer cuts at as many.
        warmup_ratio: Share of the steps that warm up.
        weight_decay: AdamW's, never on a bias or a norm.
        max_train_samples: Training examples used, the first so many; 0: all.
        dropout: Hidden and attention dropout while it is fine-tuned, and before the head; below 0:
            what the folder's config says, so what it was pretrained with, and the head what its
            family has (DistilBERT's 0.2 for classes, 0.1 for spans).
        temperature: Of the teacher's soft targets; the authors' 2.
        hard_label_weight: Weight of the labels' loss where there is a teacher; the authors' 0.5.
        soft_label_weight: Weight of the soft targets' loss; the authors' 0.5.
        hidden_weight: Weight of 1 − cos of the last hidden states, of teacher and student of one width;
            above 0 the teacher runs in every step.
        precision: "auto": bf16 autocast on CUDA, on CPU where a probe shows it faster, else fp32.
            Weights stay fp32.
    """

    learning_rate: float = 5e-5
    epochs: float = 3.0
    batch_size: int = 32
    max_length: int = 0
    warmup_ratio: float = 0.06
    weight_decay: float = 0.0
    max_train_samples: int = 0
    dropout: float = -1.0
    temperature: float = 2.0
    hard_label_weight: float = 0.5
    soft_label_weight: float = 0.5
    hidden_weight: float = 0.0
    precision: PRECISIONS = "auto"

    def check(self) -> None:
        """Raise UserError for a value that makes no sense."""
        if self.precision not in get_args(PRECISIONS):
            raise UserError(f"finetune.precision = {self.precision}: one of {', '.join(get_args(PRECISIONS))}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"finetune.{name} = {value}: must be a finite number")
        for name in ("batch_size", "max_length", "max_train_samples"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"finetune.{name} = {getattr(self, name)}: must be a whole number")
        for name in ("learning_rate", "epochs", "batch_size", "temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"finetune.{name} = {getattr(self, name)}: must be above 0")
        if 0 < self.max_length < LEAST_LENGTH:
            raise UserError(
                f"finetune.max_length = {self.max_length}: at least {LEAST_LENGTH}, of which a pair's special tokens "
                "take up to 4; 0 for the usual"
            )
        for name, what in (("warmup_ratio", "a share of the steps"), ("dropout", "a share of the values")):
            if getattr(self, name) >= 1:
                raise UserError(f"finetune.{name} = {getattr(self, name)}: {what}, below 1")
        for name in (
            "max_length",
            "warmup_ratio",
            "weight_decay",
            "max_train_samples",
            "hard_label_weight",
            "soft_label_weight",
            "hidden_weight",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"finetune.{name} = {getattr(self, name)}: must not be below 0")


def expand_grid(settings: FinetuneConfig, grid: list[str]) -> list[FinetuneConfig]:
    """Return the settings with every combination of the `NAME=VALUE,VALUE…` entries in `grid`.

    The name `lr` is short for learning_rate.
    """
    hints = get_type_hints(FinetuneConfig)
    axes: list[list[tuple[str, Any]]] = []
    for entry in grid:
        name, _, values = entry.partition("=")
        name = {"lr": "learning_rate"}.get(name, name)
        if name not in hints or not values:
            raise UserError(f"--grid {entry}: NAME=VALUE,VALUE… with a name of {', '.join(hints)}")
        if any(name == axis[0][0] for axis in axes):
            raise UserError(
                f"--grid {entry}: {name} is there twice; all of its values belong into one {name}=VALUE,VALUE…"
            )
        read = dict.fromkeys(convert(value, hints[name], f"--grid {entry}") for value in values.split(","))
        axes.append([(name, value) for value in read])
    points = [replace(settings, **dict(point)) for point in itertools.product(*axes)]
    for point in points:
        point.check()
    return points
