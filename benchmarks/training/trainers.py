"""The trainers of benchmarks.training.time_to_loss.

Each one trains the same student on the same batches with the same recipe, in its own way. The
schedule follows the clock: it rises linearly, then falls linearly to zero at the end of the time.
It cannot follow the steps, because trainers differ in their speed and the number of steps is not
known in advance.
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.reference.recipe import reference_losses
from benchmarks.training.baselines import adamw_options
from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.losses.objective import Objective
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Recipe
from ds_distill.training import checkpoint, checkpoint_writer
from ds_distill.training.device import resolve_dtype
from ds_distill.training.optimizer import parameter_groups
from ds_distill.training.step import Step
from ds_distill.training.weights import gather_master_weights


def by_the_clock(warmup_ratio: float, share: Callable[[], float]) -> Callable[[int], float]:
    """Return the factor of the peak learning rate as a function of the share of the time that has passed.

    The factor is one step behind, since a step's own time is known only after it.
    """
    return lambda step: min(share() / warmup_ratio if warmup_ratio else 1.0, max(0.0, 1 - share()) / (1 - warmup_ratio))


class Plain:
    """The reference implementation as in the authors' code.

    Weights are fp32 (under bf16 autocast if `autocast` is set). It computes full logits, averages
    the mean losses of the micro-batches and uses AdamW.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        recipe: Recipe,
        steps: int,
        share: Callable[[], float],
        autocast: bool,
    ):
        t = recipe.training
        self.teacher, self.student, self.recipe, self.autocast = (
            teacher.requires_grad_(False).eval(),
            student.train(),
            recipe,
            autocast,
        )
        groups = [
            {key: group[key] for key in ("params", "weight_decay")}
            for group in parameter_groups(student, t.weight_decay)
        ]
        self.optimizer = torch.optim.AdamW(
            groups, **{key: value for key, value in adamw_options(t).items() if key != "weight_decay"}
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, by_the_clock(t.warmup_ratio, share))

    def step(self, batches: list[Batch], counts: TokenCounts) -> None:
        """Take one optimizer step over the micro-batches."""
        x, t = self.recipe.losses, self.recipe.training
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                losses = reference_losses(
                    self.student,
                    self.teacher,
                    batch.input_ids,
                    batch.labels,
                    batch.attention_mask,
                    temperature=x.temperature,
                    kl_tokens=x.kl_tokens,
                )
                loss = sum(w * value for w, value in zip((x.kl, x.mlm, x.cosine), losses, strict=True))
            (loss / len(batches)).backward()
        if t.max_grad_norm:
            nn.utils.clip_grad_norm_(self.student.parameters(), t.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the student's weights."""
        return self.student.state_dict()

    def save(self, folder: Path, number: int, state: dict) -> None:
        """Save the student, the optimizer, the schedule and `state`, replacing the previous file atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        states = {name: getattr(self, name).state_dict() for name in ("student", "optimizer", "schedule")}
        torch.save(states | {"state": state}, folder / "writing")
        os.replace(folder / "writing", folder / "state.pt")

    def resume(self, folder: Path) -> dict | None:
        """Load what `save` wrote; return its state, or None if there is nothing."""
        if not (folder / "state.pt").is_file():
            return None
        saved = torch.load(folder / "state.pt", weights_only=True)
        for name in ("student", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(saved[name])
        return saved["state"]


class Engine:
    """The engine as `ds-distill distill` runs it, for packed batches below ZeRO stage 3.

    `steps` is roughly the number of steps to expect; it decides which optimizations pay off within
    the run.
    """

    def __init__(
        self, teacher: PreTrainedModel, student: PreTrainedModel, recipe: Recipe, steps: int, share: Callable[[], float]
    ):
        t, cpu = recipe.training, torch.device("cpu")
        dtype = resolve_dtype(t, cpu)
        frozen, objective = (
            Teacher(copy.deepcopy(teacher).to(dtype)),
            Objective(student, recipe.losses, 1, teacher.config),
        )
        self.train_step = Step(
            objective,
            frozen,
            recipe,
            steps=steps,
            accumulation=t.global_batch_size // t.micro_batch_size,
            length=recipe.data.sequence_length,
            documents=False,
            device=cpu,
            dtype=dtype,
        )
        self.engine = self.train_step.engine
        schedule = self.engine.deepspeed.lr_scheduler
        schedule.lr_lambdas = [by_the_clock(t.warmup_ratio, share)] * len(schedule.lr_lambdas)
        for group, base, factor in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(0)

    def step(self, batches: list[Batch], counts: TokenCounts) -> None:
        """Take one optimizer step over the micro-batches."""
        self.train_step(self.engine.deepspeed.global_steps, batches, counts)

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the student's fp32 master weights."""
        return gather_master_weights(self.engine)

    def save(self, folder: Path, number: int, state: dict) -> None:
        """Save a checkpoint with `state`, and keep only this one."""
        checkpoint_writer.save(self.engine, folder, number, state, keep=1)

    def resume(self, folder: Path) -> dict | None:
        """Resume from the checkpoint in `folder`; return its state, or None if there is none."""
        return checkpoint.resume(self.engine, folder)


TRAINERS = {
    "plain_fp32": ("reference implementation, fp32", lambda *a: Plain(*a, autocast=False)),
    "plain_bf16": ("reference implementation, bf16 autocast", lambda *a: Plain(*a, autocast=True)),
    "engine": ("engine", Engine),
}  # each value is (label, maker)
