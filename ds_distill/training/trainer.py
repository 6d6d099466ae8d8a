"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch

from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.data.loader import BatchLoader
from ds_distill.losses.objective import Objective
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Recipe, Training
from ds_distill.run_folder import RunFolder
from ds_distill.training import checkpoint
from ds_distill.training.evaluation import FIGURES, evaluate
from ds_distill.training.interrupt import StopRequest
from ds_distill.training.monitor import Metrics
from ds_distill.training.nonfinite import NonFiniteGuard
from ds_distill.training.overview import overview
from ds_distill.training.state import StepResult, TrainState
from ds_distill.training.step import Step
from ds_distill.utils.console import log_header
from ds_distill.utils.errors import StoppedError
from ds_distill.utils.resources import explain_out_of_memory

# What the recipe's "auto" means.
SAVE_SECONDS = 600.0  # of training between checkpoints
EVALUATIONS, MAX_EVAL_STEPS = 10, 500  # evaluations of a run at least, steps between two at most


class Trainer:
    """Runs a recipe to its end, or to a request to stop.

    A run that finds its own checkpoint in its folder resumes from it.

    Attributes:
        engine: The engine.
        state: The run's progress.
        total_steps: The optimizer steps of the whole run.
    """

    def __init__(
        self,
        objective: Objective,
        teacher: Teacher | None,
        loader: BatchLoader,
        heldout: dict[str, Callable[[], Iterable[Batch]]],
        recipe: Recipe,
        folder: RunFolder,
        device: torch.device,
        dtype: torch.dtype,
        title: str,
    ):
        """Collective: make the engine.

        Args:
            objective: The student with its losses.
            teacher: The teacher, or None for masked-LM only.
            loader: The loader of the training batches.
            heldout: By name, a function that makes a held-out set's batches. "" is the corpus's own
                held-out part, whose figures the summary reports.
            recipe: The recipe.
            folder: The run's folder.
            device: The device of the run.
            dtype: The number format of the run.
            title: The label of the progress bar.
        """
        self.objective, self.teacher, self.loader, self.heldout = objective, teacher, loader, heldout
        self.recipe, self.settings, self.folder = recipe, recipe.training, folder
        self.device, self.dtype, self.title = device, dtype, title
        self.total_steps = count_steps(recipe, loader)
        self.step = Step(
            objective,
            teacher,
            recipe,
            steps=self.total_steps,
            accumulation=loader.accumulation,
            length=loader.store.manifest["sequence_length"],
            documents=loader.collate_spec.separator is not None,
            device=device,
            dtype=dtype,
        )
        self.engine = self.step.engine
        self.guard = NonFiniteGuard(
            loader, self.settings.max_skipped, self.folder.checkpoints, scaled=dtype == torch.float16
        )
        self.state = TrainState(heldout={name: [] for name in heldout})
        self.eval_every = resolve_eval_every(self.settings, self.total_steps)
        self.saves_by_clock = self.settings.save_every == "auto"
        self.save_every = 0 if self.settings.save_every == "auto" else self.settings.save_every
        self.costs: dict[str, float] = {}

    def fit(self) -> dict[str, Any]:
        """Collective: train, evaluate and save as the recipe asks; return the summary.

        Raises:
            StoppedError: The run was asked to stop, and has saved.
            UserError: Too many steps in a row were not finite.
        """
        resumed = self.restore()
        log_header(overview(self))
        self.metrics = Metrics(
            self.recipe, self.folder, self.state, self.loader, self.total_steps, self.title, self.device
        )
        self.saved_at = time.monotonic()
        with self.metrics, StopRequest() as stop:
            if not resumed or self.state.step == self.total_steps:
                self.evaluate()  # a finished run is evaluated on texts that are new to it
            for step, batches, counts in self.loader.prefetch(
                self.state.step, self.total_steps, pin=self.device.type == "cuda"
            ):
                result = self.train_step(step, batches, counts, stop.requested, self._is_time_to_save())
                self.guard.check(step, result)
                self.state.update(result, counts)
                self.metrics.log(self.state, result, self.engine.learning_rate)
                if self._is_due(self.eval_every):
                    self.evaluate()
                if result.stop or result.save or self._is_due(self.save_every):
                    self.save()
                if result.stop and self.state.step < self.total_steps:
                    break
        if self.state.step < self.total_steps:
            raise StoppedError(
                f"stopped at step {self.state.step} of {self.total_steps}; the same command resumes from "
                f"{self.folder.checkpoints}"
            )
        if self.teacher is not None:
            self.teacher.assert_frozen()
        return self.summary()

    def restore(self) -> bool:
        """Collective: resume from the newest sound checkpoint; return whether there is one."""
        saved = checkpoint.resume(self.engine, self.folder.checkpoints)
        if saved:
            self.state = TrainState.from_checkpoint(saved)
        return saved is not None

    def train_step(self, step: int, batches: list[Batch], counts: TokenCounts, stop: bool, save: bool) -> StepResult:
        """Collective: take one optimizer step; return what all ranks agree on.

        Args:
            step: The number of the step, from 0.
            batches: This rank's micro-batches.
            counts: The tokens of the global batch.
            stop: Whether this rank was asked to end the run.
            save: Whether this rank's clock asks for a checkpoint.
        """
        sums, grad_norm = self.step(step, batches, counts)
        total = torch.stack(sums).double().sum(0)
        agreed = torch.cat([total, total.new_tensor([stop, save])])
        torch.distributed.all_reduce(agreed)
        *totals, stops, saves = agreed.tolist()
        losses = self.objective.means(totals, counts)
        return StepResult(
            loss=sum(self.objective.weights[name] * value for name, value in losses.items()),
            losses=losses,
            grad_norm=grad_norm,
            skipped=self.engine.skipped_steps > self.state.skipped,
            stop=stops > 0,
            save=saves > 0,
            sums=sums,
        )

    def evaluate(self) -> None:
        """Collective: evaluate on every held-out set that has not been evaluated at this step."""
        for name, make_batches in self.heldout.items():
            if not self.state.was_evaluated(name):
                with self.metrics.during("evaluating"):
                    figures = evaluate(self.engine, make_batches(), self.device)
                self.state.add_evaluation(name, figures)
                self.metrics.log_evaluation(name, figures, self.state.step)

    def save(self) -> None:
        """Collective: write a checkpoint."""
        self.metrics.flush()
        with self.metrics.during("saving"):
            cost = checkpoint.save(
                self.engine,
                self.folder.checkpoints,
                self.state.step,
                self.state.as_dict(),
                self.settings.save_total_limit,
            )
        self.costs = {"checkpoint_seconds": cost["seconds"], "checkpoint_bytes": cost["bytes"]}
        self.metrics.log_checkpoint(cost["seconds"], cost["bytes"], self.state.step)
        self.saved_at = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """Return the figures of a finished run."""
        last = self.state.history[-1]
        curve = self.state.heldout[""]
        sets = {
            name: {key: rows[-1].get(key) for key in FIGURES}
            for name, rows in self.state.heldout.items()
            if name and rows[-1]["step"] == self.total_steps
        }
        compile_seconds = self.step.compile_seconds
        return {
            "tokens": last["tokens"],
            "steps": self.total_steps,
            **{key: value for key, value in last.items() if key not in ("step", "tokens")},
            # a row that an earlier version wrote has figures over all selected positions only
            **{f"heldout_{key}": curve[-1].get(key) for key in FIGURES},
            **{f"start_heldout_{key}": curve[0].get(key) for key in FIGURES if key.startswith(("mask_", "mlm_"))},
            **({"heldout_sets": sets} if sets else {}),
            "skipped_steps": self.state.skipped,
            **self.metrics.summary(),
            **self.costs,
            **({} if compile_seconds is None else {"compile_seconds": round(compile_seconds, 1)}),
        }

    def _is_due(self, every: int) -> bool:
        """Return whether something that happens every so many steps, and at the end, happens now."""
        return self.state.step == self.total_steps or bool(every) and self.state.step % every == 0

    def _is_time_to_save(self) -> bool:
        """Return whether this rank's clock asks for a checkpoint."""
        return self.saves_by_clock and time.monotonic() - self.saved_at >= SAVE_SECONDS


def resolve_eval_every(training: Training, total_steps: int) -> int:
    """Return the steps between held-out evaluations of a run; 0: only at the end."""
    if training.eval_every == "auto":
        return max(1, min(total_steps // EVALUATIONS, MAX_EVAL_STEPS))
    return training.eval_every


def count_steps(recipe: Recipe, loader: BatchLoader) -> int:
    """Return the optimizer steps of the whole run."""
    if recipe.training.max_tokens:
        manifest = loader.store.manifest  # sequences of mode "lines" are shorter than sequence_length
        mean = (
            manifest["real_tokens"]["train"] / manifest["blocks"]["train"]
            if manifest["mode"] == "lines"
            else manifest["sequence_length"]
        )
        return math.ceil(recipe.training.max_tokens / (recipe.training.global_batch_size * mean))
    return recipe.training.epochs * loader.steps_per_epoch


def explain_training_memory(training: Training):
    """Turn an out-of-memory error into a UserError that names the settings to lower."""
    size = cast(int, training.micro_batch_size)  # a number has replaced "auto"
    ways = [f"training.micro_batch_size = {size // 2}"] if size > 1 else ["a shorter data.sequence_length"]
    ways += [] if training.gradient_checkpointing else ["training.gradient_checkpointing = true"]
    ways.append("in a new --output a higher ZeRO stage (training.deepspeed)")
    return explain_out_of_memory(
        f"training.micro_batch_size = {size}: try {', or '.join(ways)}; `ds-distill estimate` shows what takes it. "
        "With one of the first, the run resumes from its last checkpoint"
    )
