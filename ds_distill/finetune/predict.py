"""A model's outputs for all rows of a set, which a later call completes where an earlier one was stopped."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from ds_distill.finetune.features import Collator, Features
from ds_distill.models.families import INPUTS, get_input_names
from ds_distill.models.saving import follow_umask
from ds_distill.utils.console import progress, skip

SAVE_SECONDS = 60.0  # between two parts


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    features: Features,
    collator: Collator,
    batch: int,
    description: str,
    parts: Path | None = None,
) -> list[np.ndarray]:
    """Return the output of each row in fp32.

    It is [classes], [2, tokens] of answer starts and ends, or [classes, tokens] of words.

    Rows of similar length share a batch, so little is padding.

    Args:
        model: The model; its mode is restored.
        features: The rows.
        collator: What makes batches of them.
        batch: The number of rows of a batch.
        description: The label of the progress bar.
        parts: A folder where outputs are kept as they are computed, and read by the next call; the caller removes it.
    """
    was_training, device, input_names = model.training, next(model.parameters()).device, get_input_names(model, INPUTS)
    model.eval()
    lengths = features.lengths
    order = np.argsort(lengths, kind="stable")
    outputs = _read_parts(parts) if parts else []  # in that order
    num_kept, kept_at = len(outputs), time.monotonic()
    with progress(len(order), description, "example") as bar:
        skip(bar, num_kept)
        for start in range(num_kept, len(order), batch):
            rows = order[start : start + batch]
            inputs = collator([{name: values[row] for name, values in features.inputs.items()} for row in rows])
            out = model(**{name: inputs[name].to(device) for name in input_names})
            if hasattr(out, "logits"):
                logits = out.logits.transpose(1, 2) if out.logits.ndim == 3 else out.logits
                values = logits.float().cpu().numpy()
            else:
                values = torch.stack([out.start_logits, out.end_logits], dim=1).float().cpu().numpy()
            outputs += [
                value[..., : lengths[row]] if value.ndim == 2 else value
                for row, value in zip(rows, values, strict=True)
            ]
            bar.update(len(rows))
            if parts and time.monotonic() - kept_at >= SAVE_SECONDS:
                write_outputs(parts / f"{num_kept}.safetensors", outputs[num_kept:])
                num_kept, kept_at = len(outputs), time.monotonic()
    model.train(was_training)
    predictions = [np.empty(0)] * len(order)
    for row, value in zip(order, outputs, strict=True):
        predictions[row] = value
    return predictions


def _read_parts(folder: Path) -> list[np.ndarray]:
    outputs: list[np.ndarray] = []
    while (part := folder / f"{len(outputs)}.safetensors").is_file():
        outputs += read_outputs(part)
    return outputs


def write_outputs(file: Path, outputs: list[np.ndarray]) -> None:
    """Write outputs, as of `predict`, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    shapes = np.array([output.shape for output in outputs])
    save_file({"values": np.concatenate([output.reshape(-1) for output in outputs]), "shapes": shapes}, partial)
    follow_umask(file.parent)
    partial.replace(file)


def read_outputs(file: Path) -> list[np.ndarray]:
    """Return what `write_outputs` has written."""
    stored = load_file(file)
    ends = np.cumsum(stored["shapes"].prod(axis=1))[:-1]
    parts = zip(np.split(stored["values"], ends), stored["shapes"], strict=True)
    return [values.reshape(shape) for values, shape in parts]
