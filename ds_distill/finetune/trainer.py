"""The training and scoring of one model on one task, on transformers' Trainer."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import EncodedDev, EncodedTask
from ds_distill.finetune.features import ByLength, Collator
from ds_distill.finetune.inner_terms import InnerTerms, run_recorded
from ds_distill.finetune.predict import predict
from ds_distill.finetune.token_features import WordTokens, score_tags
from ds_distill.finetune.weight_average import WeightAverage
from ds_distill.losses.task_distillation import labeled_rows_loss, soft_target_loss
from ds_distill.models.families import INPUTS, get_input_names
from ds_distill.models.intermediates import Site
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.metrics import Measured, scores
from ds_distill.tasks.squad import Questions
from ds_distill.tasks.squad_answers import Answer, postprocess_spans, squad_scores
from ds_distill.tasks.squad_spans import Spans
from ds_distill.tracking.trackers import Trackers
from ds_distill.training.interrupt import StopRequest
from ds_distill.utils.console import skip
from ds_distill.utils.errors import StoppedError, UserError
from ds_distill.utils.files import sync
from ds_distill.utils.memory import trim_heap

# A model's answers by dev set: fp32 [examples, classes], or the answers to questions.
DevAnswers = dict[str, np.ndarray | list[np.ndarray] | list[Answer]]

SAVE_EVERY, SAVE_SECONDS = 200, 300.0  # the steps, and the seconds of training, between checkpoints at most
# The interval is in steps. Batches have many lengths, and the memory that one frees leaves holes
# that no other fills: without this, a thousand steps of SQuAD on a CPU took 10 GB instead of 3.
TRIM_HEAP_EVERY = 25


def make_arguments(
    settings: FinetuneConfig, folder: Path, seed: int, *, bf16: bool, cpu: bool, save_every: int, **others: Any
) -> TrainingArguments:
    """Return the arguments of a run's Trainer.

    Args:
        settings: The settings of the run.
        folder: The run's folder, in which checkpoints/ is made.
        seed: The seed of dropout.
        bf16: Whether it trains under bf16 autocast.
        cpu: Whether it trains on the CPU.
        save_every: The number of steps between checkpoints.
        **others: Arguments that differ from what the settings say.
    """
    usual: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "seed": seed,
        "bf16": bf16,
        "use_cpu": cpu,
        "save_strategy": "steps",
        "save_steps": save_every,
        "logging_steps": 20,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    arguments = TrainingArguments(**usual | others)
    if not cpu and arguments.device.type == "cuda":
        # Otherwise Trainer would spread a batch over every GPU it sees, and multiply it.
        arguments._n_gpu = 1
    return arguments


def find_checkpoint(folder: Path) -> tuple[int, str | None]:
    """Return (the steps that a run has done, its newest whole checkpoint); (0, None) where there is none."""
    whole = {}
    # Trainer writes trainer_state.json last; a disk that was full just then has left an empty one.
    for file in (folder / "checkpoints").glob("checkpoint-*/trainer_state.json"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            whole[json.loads(file.read_text(encoding="utf-8"))["global_step"]] = str(file.parent)
    last = max(whole, default=0)
    return last, whole.get(last)


class FinetuneTrainer(Trainer):
    """A Trainer with batches of similar length, and with a teacher's soft targets when a batch has them.

    Its checkpoints hold the mean of the weights where there is one.
    """

    def __init__(
        self,
        *args,
        settings: FinetuneConfig,
        task: Task,
        teacher: PreTrainedModel | None = None,
        average: WeightAverage | None = None,
        inner: InnerTerms | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.settings, self.task, self.teacher, self.average, self.inner = settings, task, teacher, average, inner
        if average:
            self.add_callback(average)
        self.input_names = get_input_names(cast(PreTrainedModel, self.model), INPUTS)
        self.model_accepts_loss_kwargs = False  # The loss is a mean over the micro-batch.

    def _get_train_sampler(self, train_dataset=None):
        return ByLength(self.train_dataset.lengths, self.settings.batch_size, self.args.seed)

    def _inner_loss(self, states: Mapping[Site, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms that compare what lies inside."""
        assert self.inner is not None and self.teacher is not None  # the caller asks only then
        with torch.no_grad():
            taken = {name: inputs[name] for name in get_input_names(self.teacher, INPUTS)}
            _, theirs = run_recorded(self.teacher, taken, self.inner.teacher_sites)
        terms = list(self.inner(states, theirs, inputs["attention_mask"]).values())
        return sum(terms[1:], terms[0])

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average:  # before trainer_state.json, which makes a checkpoint whole
            self.average.save(output_dir)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of a batch.

        With a teacher it is the weighted sum of the labels' loss, the soft targets' loss and the terms
        that compare what lies inside; in the first share of the steps that the settings name, of these
        terms alone.
        """
        settings, targets, labeled = self.settings, inputs.pop("teacher", None), inputs.pop("labeled", None)
        model_inputs = {name: inputs.pop(name) for name in INPUTS}
        own = {name: model_inputs[name] for name in self.input_names} | (inputs if labeled is None else {})
        # Where this process has a process group, as after a distillation, Trainer has wrapped the model, alone in it.
        model = self.accelerator.unwrap_model(model)
        sites = self.inner.student_sites if self.inner else ()
        outputs, states = run_recorded(model, own, sites)
        inner = [self._inner_loss(states, model_inputs)] if self.inner else []
        if inner and self.state.global_step < settings.layers_first * self.state.max_steps:
            loss = inner[0]
        else:
            loss = outputs.loss if labeled is None else labeled_rows_loss(outputs, inputs, labeled)
            if targets is not None:
                loss = settings.hard_label_weight * loss + settings.soft_label_weight * soft_target_loss(
                    outputs,
                    targets,
                    temperature=settings.temperature,
                    regression=self.task.regression,
                    multi_label=self.task.multi_label,
                    labels=inputs.get("labels"),
                )
            loss = sum(inner, loss)
        return (loss, outputs) if return_outputs else loss


def score_model(
    task: Task, model: PreTrainedModel, sets: EncodedTask, collator: Collator, batch: int, what: str
) -> Measured:
    """Return the task's figures on its dev sets, see `score_answers`."""
    return score_answers(task, sets.dev, answer_sets(task, model, sets.dev, collator, batch, what))


def answer_sets(
    task: Task, model: PreTrainedModel, dev: EncodedDev, collator: Collator, batch: int, what: str
) -> DevAnswers:
    """Return a model's answers to each dev set."""
    answers: DevAnswers = {}
    for split, (features, gold) in dev.items():
        outputs = predict(model, features, collator, batch, f"{what}, {split}")
        if not all(np.isfinite(output).all() for output in outputs):
            raise UserError(
                f"{what}: the model has diverged (its outputs are not finite); lower finetune.learning_rate and choose "
                "another --output"
            )
        if task.spans:
            questions, spans = cast(tuple[Questions, Spans], gold)
            answers[split] = postprocess_spans(questions, spans, [o[0] for o in outputs], [o[1] for o in outputs])
        elif isinstance(gold, WordTokens):
            answers[split] = outputs
        else:
            answers[split] = np.stack(outputs)
    return answers


def score_answers(task: Task, dev: EncodedDev, answers: DevAnswers) -> Measured:
    """Return the task's figures on its dev sets.

    The figures of a second dev set have its name before theirs.
    """
    figures: Measured = {}
    for number, (split, (_, gold)) in enumerate(dev.items()):
        if task.spans:
            split_figures = squad_scores(cast(tuple[Questions, Spans], gold)[0], cast(list[Answer], answers[split]))
        elif isinstance(gold, WordTokens):
            split_figures = score_tags(task, cast(list[np.ndarray], answers[split]), gold)
        else:
            split_figures = scores(task.metrics, cast(np.ndarray, answers[split]), cast(np.ndarray, gold))
        figures |= (
            split_figures
            if number == 0
            else {f"{split.removeprefix('validation_')}_{name}": value for name, value in split_figures.items()}
        )
    return figures


def train(trainer: Trainer, checkpoint: str | None) -> None:
    """Train a model in place, from a checkpoint on if there is one. A signal asks for a checkpoint and the end.

    Raises:
        StoppedError: The process was asked to end, and a checkpoint is there.
    """
    with StopRequest() as stop:
        trainer.add_callback(SaveInTime(stop))
        trainer.train(resume_from_checkpoint=checkpoint)
        if stop.requested:
            folder, state = trainer.args.output_dir, trainer.state
            raise StoppedError(
                f"stopped at step {state.global_step:,} of {state.max_steps:,}; the same command resumes from {folder}"
            )


class SaveInTime(TrainerCallback):
    """A callback that saves by the clock, since 200 steps of a large model take half an hour, and before the end."""

    def __init__(self, stop: StopRequest):
        self.stop, self._saved = stop, time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop.requested:
            control.should_save = control.should_training_stop = True
        elif time.monotonic() - self._saved >= SAVE_SECONDS:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        """Remove all checkpoints but the new one, once it would outlast a power cut."""
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for file in newest.rglob("*"):
            sync(file)
        for place in (newest, newest.parent):
            sync(place)
        for other in newest.parent.glob("checkpoint-*"):
            if other != newest:
                shutil.rmtree(other, ignore_errors=True)
        self._saved = time.monotonic()


class ProgressBar(TrainerCallback):
    """A callback that advances the whole plan's progress bar with each step."""

    def __init__(self, bar):
        self.bar = bar

    def on_train_begin(self, args, state, control, **kwargs):
        skip(self.bar, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.log_history:
            self.bar.show(f"loss {state.log_history[-1].get('loss', 0):.3f}")
        self.bar.update()
        if state.global_step % TRIM_HEAP_EVERY == 0:
            trim_heap()


class ReportCallback(TrainerCallback):
    """A callback that reports what Trainer logs under the names of a distillation's figures."""

    NAMES = {"loss": "loss/total", "learning_rate": "train/lr", "grad_norm": "train/grad_norm", "epoch": "train/epoch"}

    def __init__(self, trackers: Trackers):
        self.trackers = trackers

    def on_train_begin(self, args, state, control, **kwargs):
        self._began, self._first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            steps_per_second = (state.global_step - self._first_step) / (time.perf_counter() - self._began)
            figures = {name: logs.get(key) for key, name in self.NAMES.items()}
            figures |= {key: value for key, value in logs.items() if key.startswith("loss/")}  # of single tasks
            self.trackers.log(figures | {"train/steps_per_second": steps_per_second}, state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self.trackers.flush()
