"""The training of one encoder on several tasks, on transformers' Trainer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import Trainer


class MultitaskTrainer(Trainer):
    """A Trainer whose data set has the batch of each step, in order, and which logs the loss of each task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # The loss is a mean over the batch.
        self._losses: dict[str, list[Tensor]] = {}  # since the last log, by task

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of a step's batch."""
        # Where this process has a process group, Trainer has wrapped the model, and would wait for other tasks' heads.
        loss = self.accelerator.unwrap_model(model)(**inputs)
        self._losses.setdefault(inputs["task"], []).append(loss.detach())
        return (loss, None) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        """Log figures, with the mean loss of each task since the last time as loss/TASK."""
        if "loss" in logs:
            means = {f"loss/{task}": float(sum(values)) / len(values) for task, values in self._losses.items()}
            logs, self._losses = logs | means, {}
        super().log(logs, *args, **kwargs)
