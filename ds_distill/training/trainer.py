"""The training loop."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from transformers import PretrainedConfig

from ds_distill.data.batch import Batch, TokenCounts
from ds_distill.data.loader import BatchLoader
from ds_distill.distributed.process_group import run_on_rank0
from ds_distill.losses.objective import Objective
from ds_distill.models.ensemble import Ensemble
from ds_distill.models.families import could_recompute
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Recipe, Training
from ds_distill.run_folder import RunFolder
from ds_distill.training import checkpoint
from ds_distill.training.checkpoint_writer import CheckpointWriter, Saved
from ds_distill.training.deviations import divide_by_deviations
from ds_distill.training.evaluation import FIGURES, evaluate
from ds_distill.training.interrupt import Interrupted, StopRequest
from ds_distill.training.matched_evaluation import evaluate_matches
from ds_distill.training.monitor import Metrics
from ds_distill.training.nonfinite import NonFiniteGuard
from ds_distill.training.overview import overview
from ds_distill.training.rank_times import RankTimes
from ds_distill.training.recurring import when_to_evaluate, when_to_save
from ds_distill.training.stages import Stages
from ds_distill.training.state import StepResult, TrainState
from ds_distill.training.step import Step
from ds_distill.utils.console import log_event, log_header
from ds_distill.utils.errors import StoppedError, UserError
from ds_distill.utils.resources import explain_out_of_memory
from ds_distill.utils.step_clock import STEPS


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
        objective: Objective | None,
        teacher: Teacher | Ensemble | None,
        loader: BatchLoader,
        heldout: dict[str, Callable[[], Iterable[Batch]]],
        recipe: Recipe,
        folder: RunFolder,
        device: torch.device,
        dtype: torch.dtype,
        title: str,
        stages: Stages | None = None,
    ):
        """Collective: make the engine.

        Args:
            objective: The student with its losses; None in a run with stages.
            teacher: The teacher, or None for masked-LM only.
            loader: The loader of the training batches.
            heldout: By name, a function that makes a held-out set's batches. "" is the corpus's own
                held-out part, whose figures the summary reports.
            recipe: The recipe.
            folder: The run's folder.
            device: The device of the run.
            dtype: The number format of the run.
            title: The label of the progress bar.
            stages: The run's stages, if it has any.
        """
        self.teacher, self.loader, self.heldout, self.stages = teacher, loader, heldout, stages
        self.recipe, self.settings, self.folder = recipe, recipe.training, folder
        self.device, self.dtype, self.title = device, dtype, title
        self.total_steps = count_steps(recipe, loader)
        self.found = checkpoint.find_sound(folder.checkpoints)
        done = checkpoint.step_of(self.found) if self.found else 0
        self._use(stages.begin(done, self.found) if stages else cast(Objective, objective), done)
        self.guard = NonFiniteGuard(
            loader, self.settings.max_skipped, self.folder.checkpoints, scaled=dtype == torch.float16
        )
        self.state = TrainState(heldout={name: [] for name in heldout})
        self.writer = CheckpointWriter(self.engine, folder.checkpoints, self.settings.save_total_limit)
        self.saved: Saved | None = None  # the last checkpoint that was logged
        self.waited = self.step_wait = 0.0  # for batches, in seconds: by the end of the last step, and in it
        self.costs: dict[str, float] = {}
        self.rank_times = RankTimes()

    def _use(self, objective: Objective, step: int) -> None:
        """Collective: make the step and the engine of an objective, which takes the steps from `step` on."""
        loader = self.loader
        self.objective = objective
        self.step = Step(
            objective,
            self.teacher,
            self.recipe,
            steps=self.total_steps,
            accumulation=loader.accumulation,
            length=loader.store.manifest["sequence_length"],
            documents=loader.collate_spec.separator is not None,
            device=self.device,
            dtype=self.dtype,
            span=self.stages.at(step) if self.stages else None,
        )
        self.engine = self.step.engine

    def fit(self) -> dict[str, Any]:
        """Collective: train, evaluate and save as the recipe asks; return the summary.

        Raises:
            StoppedError: The run was asked to stop, and has saved.
            UserError: Too many steps in a row were not finite.
        """
        saved_at = self.restore()
        if self.stages:
            self.state.begin_stage(self.stages.at(self.state.step).number)
        self.divide_by_deviations()
        log_header(overview(self))
        self.saving = when_to_save(self.settings, self.total_steps)
        self.evaluating = when_to_evaluate(self.settings, self.total_steps)
        # all ranks hear signals before a first file shows that the run has begun; trackers may upload after that
        with contextlib.ExitStack() as shown, StopRequest() as stop:
            torch.distributed.barrier()
            self.metrics = shown.enter_context(
                Metrics(self.recipe, self.folder, self.state, self.total_steps, self.title, self.device)
            )
            try:
                # a stop may have cut the evaluation of a checkpoint's step short, and a finished run may have new texts
                if self.evaluating.is_due(self.state.step, asked=self.state.step == 0):
                    self.evaluate(stop)
                self.train(stop)
            except Interrupted:
                if self.state.step != saved_at:
                    self.save()
            with self.metrics.during("saving"):
                self.writer.wait()
            self.log_checkpoint()
            evaluated = all(map(self.state.was_evaluated, self.heldout))
            stop.answered = self.state.step < self.total_steps or not evaluated
        if stop.answered:
            raise StoppedError(
                f"stopped at step {self.state.step:,} of {self.total_steps:,}; the same command resumes from "
                f"{self.folder.checkpoints}"
            )
        if self.teacher is not None:
            self.teacher.assert_frozen()
        return self.summary()

    def restore(self) -> int | None:
        """Collective: resume from the newest sound checkpoint; return its step, or None where there is none."""
        if self.found is None:
            return None
        self.state = TrainState.from_checkpoint(checkpoint.load(self.engine, self.found))
        return self.state.step

    def train(self, stop: StopRequest) -> None:
        """Collective: take the steps that are left, and evaluate and save between them, until a rank is asked to stop.

        Raises:
            Interrupted: As `evaluate`.
            UserError: Too many steps in a row were not finite.
        """
        on_gpu = self.device.type == "cuda"
        for step, batches, counts in self.loader.prefetch(
            self.state.step, self.total_steps, pin=on_gpu, process=on_gpu
        ):
            result = self.train_step(step, batches, counts, stop.requested)
            self.advance_checkpoint(result)
            try:
                self.guard.check(step, result)
            except UserError:
                self.writer.wait()  # the ranks are here together, and the newest checkpoint is worth having
                raise
            self.state.update(result, counts)
            self.metrics.log(self.state, result, self.engine.learning_rate, self.step.compile_seconds or 0.0)
            self.compare_ranks()
            self.enter_stage()
            if self.evaluating.is_due(self.state.step, result.evaluate):
                self.evaluate(stop)
            if result.stop or self.saving.is_due(self.state.step, result.save):
                self.save()
            if result.stop and self.state.step < self.total_steps:
                break

    def divide_by_deviations(self) -> None:
        """Collective: give the objective the teacher's deviations that it divides by, measured once in a run."""
        if self.objective.divided_sites and self.teacher is not None:
            divide_by_deviations(self.objective, self.teacher, self.loader, self.state.deviations, self.device)

    def enter_stage(self) -> None:
        """Collective: where another stage begins, hand the weights over to an engine of its own.

        This comes before an evaluation or a checkpoint at the same step, so the stage of a checkpoint follows from its
        step alone.
        """
        if not self.stages or (span := self.stages.at(self.state.step)).number == self.state.stages[-1]["stage"]:
            return
        with self.metrics.during("next stage"):
            self.writer.wait()
            self.log_checkpoint()
            compiled_before = self.step.compiled_before
            objective = self.stages.next(span, self.engine)
            # a GPU need not hold two engines; theirs refer to each other in circles
            del self.engine, self.step, self.objective, self.writer.engine
            gc.collect()
            self._use(objective, self.state.step)
            self.step.compiled_before = compiled_before
            self.engine.deepspeed.skipped_steps = self.state.skipped  # it counts those of the whole run
            self.writer.use(self.engine)
            self.divide_by_deviations()
        self.state.begin_stage(span.number)
        log_event(f"stage {span.number} of {len(self.stages.spans)}, {span.describe()}")

    def train_step(self, step: int, batches: list[Batch], counts: TokenCounts, stop: bool) -> StepResult:
        """Collective: take one optimizer step; return what all ranks agree on.

        Args:
            step: The number of the step, from 0.
            batches: This rank's micro-batches.
            counts: The tokens of the global batch.
            stop: Whether this rank was asked to end the run.
        """
        STEPS.begin(step + 1)
        sums, grad_norm = self.step(step, batches, counts)
        total = torch.stack(sums).double().sum(0)
        asked = [stop, self.saving.is_asked(step + 1), self.evaluating.is_asked(step + 1)]
        asked += [self.writer.is_written, self.writer.has_failed]
        # a sum over ranks in which each has a place of its own shows all their values
        waits = [0.0] * torch.distributed.get_world_size()
        self.waited, self.step_wait = self.loader.seconds_waited, self.loader.seconds_waited - self.waited
        waits[torch.distributed.get_rank()] = self.step_wait
        agreed = torch.cat([total, total.new_tensor([*asked, *waits])])
        torch.distributed.all_reduce(agreed)
        values = agreed.tolist()
        STEPS.end()
        totals, waits = values[: len(total)], values[len(total) + len(asked) :]
        stops, saves, evaluations, written, failed = values[len(total) : len(total) + len(asked)]
        losses = self.objective.means(totals, counts)
        return StepResult(
            loss=sum(self.objective.weights[name] * value for name, value in losses.items() if value is not None),
            losses=losses,
            grad_norm=grad_norm,
            skipped=self.engine.skipped_steps > self.state.skipped,
            stop=stops > 0,
            save=saves > 0,
            evaluate=evaluations > 0,
            written=written == len(waits),
            failed=failed > 0,
            data_wait=max(waits),
            sums=sums,
        )

    def compare_ranks(self) -> None:
        """Collective: count this rank's own time of the step; from time to time compare it with the others'."""
        if figures := self.rank_times.add(self.state.step, self.step.own_time.take() + self.step_wait):
            self.metrics.log_ranks(figures, self.state.step)

    def evaluate(self, stop: StopRequest) -> None:
        """Collective: evaluate on every held-out set that has not been evaluated at this step.

        Raises:
            Interrupted: A rank was asked to end the run. A run that resumes from a checkpoint of this step
                evaluates what is missing, if the evaluation was due at the step and not by the clock.
        """
        for name, make_batches in self.heldout.items():
            if not self.state.was_evaluated(name):
                with self.metrics.during("evaluating"), self.evaluating.occurrence():
                    figures = self.measure(stop.interrupt(make_batches(), self.device))
                self.state.add_evaluation(name, figures)
                self.metrics.log_evaluation(name, figures, self.state.step)

    def measure(self, batches: Iterable[Batch]) -> dict[str, float | int | None]:
        """Collective: return the figures of the model on held-out batches."""
        if self.objective.has_head or self.teacher is None:
            return evaluate(self.engine, batches, self.device)
        return evaluate_matches(self.engine, self.objective, self.teacher, batches, self.device)

    def save(self) -> None:
        """Collective: begin a checkpoint, which is written while the training continues."""
        run_on_rank0(self.folder.check_lock)
        self.metrics.flush()
        began = time.perf_counter()
        with self.metrics.during("saving"), self.saving.occurrence():
            self.writer.wait()
            self.log_checkpoint()
            self.writer.begin(self.state.step, self.state.as_dict())
        self.costs["checkpoint_stop_seconds"] = time.perf_counter() - began

    def advance_checkpoint(self, result: StepResult) -> None:
        """Collective: publish the checkpoint once all ranks have written it, and report what was published.

        Raises:
            UserError: A rank could not write its part.
        """
        if result.failed:
            self.writer.wait()
        if result.written:
            run_on_rank0(self.folder.check_lock)
            self.writer.publish()
        self.log_checkpoint()

    def log_checkpoint(self) -> None:
        """Show a checkpoint that was published since the last call."""
        saved = self.writer.published()
        if saved is not None and saved != self.saved:
            self.saved = saved
            self.costs |= {"checkpoint_seconds": saved.seconds, "checkpoint_bytes": saved.bytes}
            stopped = self.costs["checkpoint_stop_seconds"]
            self.metrics.log_checkpoint(saved, stopped, self.state.step)

    def summary(self) -> dict[str, Any]:
        """Return the figures of a finished run."""
        last = self.state.history[-1]
        curve = self.state.heldout[""]
        figures, starting = FIGURES, [key for key in FIGURES if key.startswith(("mask_", "mlm_"))]
        if not self.objective.has_head:
            figures = tuple(key for key in curve[-1] if key not in ("step", "tokens"))
            # the first and the last of several stages have terms of their own
            starting = [] if self.stages and len(self.stages.spans) > 1 else list(figures)
        sets = {
            name: {key: rows[-1].get(key) for key in figures}
            for name, rows in self.state.heldout.items()
            if name and rows[-1]["step"] == self.total_steps
        }
        compile_seconds = self.step.compile_seconds
        return {
            "tokens": last["tokens"],
            "steps": self.total_steps,
            **{key: value for key, value in last.items() if key not in ("step", "tokens")},
            # a row that an earlier version wrote has figures over all selected positions only
            **{f"heldout_{key}": curve[-1].get(key) for key in figures},
            **{f"start_heldout_{key}": curve[0].get(key) for key in starting},
            **({"heldout_sets": sets} if sets else {}),
            "skipped_steps": self.state.skipped,
            **self.metrics.summary(),
            **self.costs,
            **({} if compile_seconds is None else {"compile_seconds": round(compile_seconds, 1)}),
        }


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


def explain_training_memory(training: Training, config: PretrainedConfig):
    """Turn an out-of-memory error in training a model of this config into a UserError that names settings to lower."""
    size = cast(int, training.micro_batch_size)  # a number has replaced "auto"
    ways = [f"training.micro_batch_size = {size // 2}"] if size > 1 else ["a shorter data.sequence_length"]
    ways += ["training.gradient_checkpointing = true"] if could_recompute(config, training) else []
    ways.append("in a new --output a higher ZeRO stage (training.deepspeed)")
    return explain_out_of_memory(
        f"training.micro_batch_size = {size}: try {', or '.join(ways)}; `ds-distill estimate` shows what uses the "
        "memory. With any of these but a higher ZeRO stage, the run resumes from its last checkpoint"
    )
