"""The settings of a fine-tuning run, and the grid of such settings."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args, get_type_hints

from ds_distill.config.limits import limited, limited_values
from ds_distill.config.losses import Match
from ds_distill.config.quantization import QuantizedFormat
from ds_distill.config.renamed import current_name
from ds_distill.config.values import convert
from ds_distill.utils.errors import UserError

LEAST_LENGTH = 6  # tokens
PRECISIONS = Literal["auto", "fp32", "bf16"]


@dataclass
class FinetuneConfig:
    """The settings of one fine-tuning run.

    Args:
        learning_rate: Peak learning rate, after a linear warm-up and before a linear decay to zero. The
            authors of DistilBERT use 5e-5 for SQuAD.
        epochs: Number of passes over the training set.
        batch_size: Number of examples per step.
        max_length: Maximum number of tokens per example, and at most the model's positions. 0 means
            128, or 384 for SQuAD, whose contexts are split into parts that overlap by 128, as in
            transformers' run_qa. The tokenizer in the saved folder truncates to the same length.
        warmup_ratio: Share of the steps that warm up the learning rate.
        weight_decay: Weight decay of AdamW; biases and normalization layers are exempt.
        max_train_samples: Number of training examples to use, from the first on; 0 means all.
        dropout: Dropout of hidden states and attention during fine-tuning, and before the head. Below
            0, the pretraining value in the model's config is used, and the head uses the default of its
            family (for DistilBERT 0.2 for classes and 0.1 for spans).
        temperature: Temperature of the teacher's soft targets. DistilBERT's authors use 2.
        hard_label_weight: Weight of the loss on labels if there is a teacher. DistilBERT's authors use
            0.5.
        soft_label_weight: Weight of the loss on the teacher's soft targets. DistilBERT's authors use
            0.5.
        teacher_weights: Weights of several teachers, in the order of --teacher, in the mean of their soft targets,
            divided by their sum; default: equal weights.
        match: Additional loss terms that compare hidden states, embeddings or attention of the student with those of
            its fine-tuned teacher, as in losses.match; none by default. The teacher (the first of several) then runs
            in every step.
        layers_first: Share of the steps, at the start of the run, in which only `match` is learned, before soft
            targets and labels.
        augmented_copies: Number of copies of each training example that are read of --augmented; 0 means all.
        average_weights: Share of the steps, at the end of the run, over which the weights are averaged;
            the saved model has their mean. 0.33 averages the last third of the steps, and 0 nothing.
        quantize: Quantization-aware training: compute in the last steps as the exported file of this format does, with
            rounded weights and, for int8, rounded activations, so that the model learns to be accurate after
            quantization; none by default.
        quantize_share: Share of the steps, at the end of the run, that `quantize` applies to.
        precision: Precision of training; weights stay in fp32. "auto" is bf16 autocast on CUDA, and on a
            CPU where a probe shows that it is faster, else fp32.
    """

    learning_rate: float = limited(5e-5, 1e-9, 10)
    epochs: float = limited(3.0, 1e-6, 10**6)
    batch_size: int = limited(32, 1, 1 << 20)
    max_length: int = limited(0, 0, 1 << 16)
    warmup_ratio: float = limited(0.06, 0, 0.99)
    weight_decay: float = limited(0.0, 0, 10)
    max_train_samples: int = limited(0, 0, 10**12)
    dropout: float = limited(-1.0, -1, 0.99)
    temperature: float = limited(2.0, 0.01, 1e3)
    hard_label_weight: float = limited(0.5, 0, 1e6)
    soft_label_weight: float = limited(0.5, 0, 1e6)
    teacher_weights: list[float] | None = limited(None, 0, 1e6, each=True)
    match: list[Match] = field(default_factory=list)
    layers_first: float = limited(0.0, 0, 0.99)
    augmented_copies: int = limited(0, 0, 10**6)
    average_weights: float = limited(0.0, 0, 1)
    quantize: QuantizedFormat | None = None
    quantize_share: float = limited(0.33, 0, 1)
    precision: PRECISIONS = "auto"

    def __post_init__(self) -> None:
        """Turn the mappings of a file into terms."""
        self.match = convert(self.match, list[Match], "finetune.match")

    @classmethod
    def complete(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Return settings that a run has kept, with the defaults of those that an earlier version did not have."""
        return cls().as_dict() | settings

    def as_dict(self) -> dict[str, Any]:
        """Return the settings by name, in the form that JSON gives back."""
        return json.loads(json.dumps(asdict(self)))

    def check(self) -> None:
        """Raise UserError for a value that makes no sense."""
        parts = [("finetune", self), *((f"finetune.match[{index}]", match) for index, match in enumerate(self.match))]
        for place, part in parts:
            for key, value, low, high in limited_values(part):
                if value is not None and not low <= value <= high:
                    raise UserError(f"{place}.{key} = {value}: must be between {low} and {high:g}")
        if self.layers_first and not any(match.weight for match in self.match):
            problem = "has no term with a weight above 0" if self.match else "has no term"
            raise UserError(
                f"finetune.layers_first = {self.layers_first}: finetune.match {problem}, so nothing would be learned "
                "in these steps; give finetune.match, or leave it out"
            )
        if self.quantize not in (None, *get_args(QuantizedFormat)):
            raise UserError(
                f"finetune.quantize = {self.quantize}: must be one of {', '.join(get_args(QuantizedFormat))}, or null"
            )
        if self.precision not in get_args(PRECISIONS):
            raise UserError(f"finetune.precision = {self.precision}: must be one of {', '.join(get_args(PRECISIONS))}")
        for name in ("batch_size", "max_length", "max_train_samples", "augmented_copies"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"finetune.{name} = {getattr(self, name)}: must be a whole number")
        if 0 < self.max_length < LEAST_LENGTH:
            raise UserError(
                f"finetune.max_length = {self.max_length}: must be at least {LEAST_LENGTH}, because the special tokens "
                "of a pair take up to 4; 0 means the task's default"
            )

    def check_learns(self, augmented: bool = False) -> None:
        """Raise UserError where the weights leave a student with a teacher nothing to learn.

        Args:
            augmented: Whether texts of `ds-distill augment` are read, which have no labels.
        """
        if self.soft_label_weight or any(match.weight for match in self.match):
            return
        if not self.hard_label_weight:
            raise UserError(
                "finetune.soft_label_weight = 0 and finetune.hard_label_weight = 0: nothing would be learned; give one "
                "of them, or finetune.match"
            )
        if augmented:
            raise UserError(
                "finetune.soft_label_weight = 0: nothing would be learned from augmented texts, which have no labels; "
                "give it, or leave the texts out"
            )


def expand_grid(settings: FinetuneConfig, grid: list[str]) -> list[FinetuneConfig]:
    """Return the settings with every combination of the `NAME=VALUE,VALUE…` entries in `grid`.

    The name `lr` is short for learning_rate.
    """
    hints = get_type_hints(FinetuneConfig)
    axes: list[list[tuple[str, Any]]] = []
    for entry in grid:
        name, _, values = entry.partition("=")
        name = {"lr": "learning_rate"}.get(name, name)
        if name not in hints and (renamed := current_name(f"tuning.{name.rpartition('.')[2]}")):
            if renamed.removeprefix("finetune.") != name:
                raise UserError(f"--grid {entry}: {name} is called {renamed.removeprefix('finetune.')} now")
        if name in ("match", "teacher_weights"):
            raise UserError(
                f"--grid {entry}: its value has commas of its own; give --finetune.{name}, or separate runs"
            )
        if name not in hints or not values:
            raise UserError(f"--grid {entry}: must be NAME=VALUE,VALUE…, where NAME is one of {', '.join(hints)}")
        if any(name == axis[0][0] for axis in axes):
            raise UserError(f"--grid {entry}: {name} is given twice; give all of its values in one {name}=VALUE,VALUE…")
        converted = dict.fromkeys(convert(value, hints[name], f"--grid {entry}") for value in values.split(","))
        axes.append([(name, value) for value in converted])
    points = [replace(settings, **dict(point)) for point in itertools.product(*axes)]
    for point in points:
        point.check()
    return points
