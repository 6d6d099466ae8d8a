"""The last steps of a fine-tuning in the arithmetic of a quantized file."""

from __future__ import annotations

from transformers import PreTrainedModel, TrainerCallback

from ds_distill.compression.fake_quantize import fake_quantize
from ds_distill.config.quantization import QuantizedFormat
from ds_distill.utils.console import log_event


class QuantizeLast(TrainerCallback):
    """A callback that has a model fake-quantized in the last share of its steps."""

    def __init__(self, model: PreTrainedModel, format: QuantizedFormat, share: float):
        """Begin with floats; the first step of a training, or of a resumed one, decides what it computes in.

        Args:
            model: The model in training.
            format: The format.
            share: The share of the steps, from 0 to 1.
        """
        self.model, self.format, self.share, self.quantized = model, format, share, False

    def on_step_begin(self, args, state, control, **kwargs):
        if not self.quantized and state.global_step >= state.max_steps - round(self.share * state.max_steps):
            fake_quantize(self.model, self.format)
            self.quantized = True
            log_event(
                f"step {state.global_step:,} of {state.max_steps:,}: quantization-aware training for {self.format} "
                "from here on"
            )
