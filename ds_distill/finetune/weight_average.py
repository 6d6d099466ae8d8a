"""The mean of the weights over the last steps of a fine-tuning."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel
from transformers import PreTrainedModel, TrainerCallback

FILE = "average.pt"  # in a checkpoint


class WeightAverage(TrainerCallback):
    """A callback that averages a model's weights over the last share of its steps.

    All steps count alike, in fp32 (Izmailov et al. 2018, Averaging weights leads to wider optima
    and better generalization). The training itself does not change.
    """

    def __init__(self, model: PreTrainedModel, share: float, checkpoint: str | None = None):
        """Begin with no steps, or with those that a checkpoint holds.

        Args:
            model: The model in training, with weights in fp32.
            share: The share of the steps, above 0 and at most 1; at least the last step counts.
            checkpoint: The folder of the checkpoint that the training resumes from.
        """
        self.model, self.share = model, share
        self.average: AveragedModel | None = None
        if checkpoint and (file := Path(checkpoint) / FILE).is_file():
            self.average = AveragedModel(model)
            self.average.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > state.max_steps - max(1, round(self.share * state.max_steps)):
            if self.average is None:
                self.average = AveragedModel(self.model)
            self.average.to(self.model.device).update_parameters(self.model)

    def save(self, checkpoint: str) -> None:
        """Write the mean so far into the folder of a checkpoint."""
        if self.average is not None:
            torch.save(self.average.state_dict(), Path(checkpoint) / FILE)

    def apply(self) -> None:
        """Give the model the averaged weights."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
