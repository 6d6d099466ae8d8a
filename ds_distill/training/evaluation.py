import math
from collections.abc import Iterable

import torch

from ds_distill.utils.progress import note_progress


def evaluate(run, batches: Iterable, device: torch.device) -> dict[str, float | None]:
    """Held-out masked-LM loss (nats a masked token) and top-1 accuracy (share); None where no token is masked, or their
    sum is no number.

    run: an engine or an Objective; batches: Batch objects with fixed masks. Every rank reads all batches, since ZeRO-3 needs equal calls.
    """
    was_training = run.training
    run.eval()
    total = torch.zeros(3, dtype=torch.float64)
    # a last batch is smaller: not worth compiling anew
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for batch in batches:
            batch = batch.to(device)
            total += run(batch.input_ids, batch.attention_mask, batch.labels).cpu()
            note_progress()
    run.train(was_training)
    loss, correct, tokens = total.tolist()
    measured = tokens > 0 and math.isfinite(loss)
    return {
        "heldout_mlm_loss": loss / tokens if measured else None,
        "heldout_mlm_accuracy": correct / tokens if measured else None,
    }
