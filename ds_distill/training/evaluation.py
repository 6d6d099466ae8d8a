"""Evaluation on held-out text."""

import math
from collections.abc import Iterable

import torch

from ds_distill.utils.progress import note_progress


def evaluate(run, batches: Iterable, device: torch.device) -> dict[str, float | None]:
    """Return held-out masked-LM loss (nats per masked token) and top-1 accuracy (share).

    Both are None where no token is masked or their sum is not finite.

    Args:
        run: An engine or an Objective.
        batches: Batch objects with fixed masks. Every rank reads all batches, since ZeRO-3 needs
            equal calls.
        device: The device to run on.
    """
    was_training = run.training
    run.eval()
    total = torch.zeros(3, dtype=torch.float64)
    # the last batch is smaller and not worth compiling anew
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for batch in batches:
            batch = batch.to(device)
            _, sums = run(batch.input_ids, batch.attention_mask, batch.labels, mode="evaluate")
            total += sums.cpu()
            note_progress()
    run.train(was_training)
    loss, correct, tokens = total.tolist()
    measured = tokens > 0 and math.isfinite(loss)
    return {
        "mlm_loss": loss / tokens if measured else None,
        "mlm_accuracy": correct / tokens if measured else None,
    }
