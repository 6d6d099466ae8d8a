"""The training and scoring of one model on one task, on transformers' Trainer."""

from __future__ import annotations

import time
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import EncodedTask
from ds_distill.finetune.features import ByLength, Collator, predict
from ds_distill.finetune.token_features import WordTokens, score_tags
from ds_distill.losses.task_distillation import hidden_cosine_loss, soft_target_loss
from ds_distill.models.families import INPUTS, get_input_names
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.metrics import Measured, scores
from ds_distill.tasks.squad import Questions, Spans, postprocess_spans, squad_scores
from ds_distill.tracking.trackers import Trackers
from ds_distill.utils.console import skip
from ds_distill.utils.errors import UserError
from ds_distill.utils.memory import trim_heap

SAVE_EVERY = 200  # steps
# The interval is in steps. Batches have many lengths, and the memory that one frees leaves holes
# that no other fills: without this, a thousand steps of SQuAD on a CPU took 10 GB instead of 3.
TRIM_HEAP_EVERY = 25


class FinetuneTrainer(Trainer):
    """A Trainer with batches of similar length, and with a teacher's soft targets when a batch has them."""

    def __init__(self, *args, settings: FinetuneConfig, task: Task, teacher: PreTrainedModel | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.settings, self.task, self.teacher = settings, task, teacher
        self.input_names = get_input_names(cast(PreTrainedModel, self.model), INPUTS)
        self.model_accepts_loss_kwargs = False  # The loss is a mean over the micro-batch.

    def _get_train_sampler(self, train_dataset=None):
        return ByLength(self.train_dataset.lengths, self.settings.batch_size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of a batch.

        With soft targets it is the weighted sum of the labels' loss, the soft targets' loss and,
        where its weight is above 0, the cosine loss of the last hidden states.
        """
        settings, targets = self.settings, inputs.pop("teacher", None)
        model_inputs = {name: inputs.pop(name) for name in INPUTS}
        outputs = model(
            **{name: model_inputs[name] for name in self.input_names},
            **inputs,
            output_hidden_states=settings.hidden_weight > 0 and targets is not None,
        )
        loss = outputs.loss
        if targets is not None:
            loss = settings.hard_label_weight * loss + settings.soft_label_weight * soft_target_loss(
                outputs,
                targets,
                temperature=settings.temperature,
                regression=self.task.regression,
                multi_label=self.task.multi_label,
                labels=inputs.get("labels"),
            )
            if settings.hidden_weight > 0:
                with torch.no_grad():
                    teacher_outputs = self.teacher(
                        **{name: model_inputs[name] for name in get_input_names(self.teacher, INPUTS)},
                        output_hidden_states=True,
                    )
                loss = loss + settings.hidden_weight * hidden_cosine_loss(
                    outputs.hidden_states[-1], teacher_outputs.hidden_states[-1], model_inputs["attention_mask"]
                )
        return (loss, outputs) if return_outputs else loss


def score_model(
    task: Task, model: PreTrainedModel, sets: EncodedTask, collator: Collator, batch: int, what: str
) -> Measured:
    """Return the task's figures on its dev sets.

    The figures of a second dev set have its name before theirs.
    """
    figures: Measured = {}
    for number, (split, (features, gold)) in enumerate(sets.dev.items()):
        outputs = predict(model, features, collator, batch, f"{what}, {split}")
        if not all(np.isfinite(output).all() for output in outputs):
            raise UserError(
                f"{what}: the model has diverged (its outputs are not finite); lower finetune.learning_rate and choose "
                "another --output"
            )
        if task.spans:
            questions, spans = cast(tuple[Questions, Spans], gold)
            split_figures = squad_scores(
                questions, postprocess_spans(questions, spans, [o[0] for o in outputs], [o[1] for o in outputs])
            )
        elif isinstance(gold, WordTokens):
            split_figures = score_tags(task, outputs, gold)
        else:
            split_figures = scores(task.metrics, np.stack(outputs), cast(np.ndarray, gold))
        figures |= (
            split_figures
            if number == 0
            else {f"{split.removeprefix('validation_')}_{name}": value for name, value in split_figures.items()}
        )
    return figures


class _Bar(TrainerCallback):
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
            self.trackers.log(figures | {"train/steps_per_second": steps_per_second}, state.global_step)

    def on_save(self, args, state, control, **kwargs):
        self.trackers.flush()
