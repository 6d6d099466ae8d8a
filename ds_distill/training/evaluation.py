"""Evaluation on held-out text."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ds_distill.data.batch import Batch
from ds_distill.utils.progress import note_progress

# The positions that figures are over: those that show [MASK], all selected ones, those that show the
# token itself, and those that show another token. Where the token itself is shown, the answer is
# visible, so figures over all selected positions are better than the model is.
KINDS = ("mask", "mlm", "kept", "random")
FIGURES = tuple(
    f"{kind}_{figure}" for kind in KINDS for figure in ("loss", "loss_se", "accuracy", "accuracy_se", "count")
)
# The quantities that are summed over the positions of a sequence; the last is 1 where it has any.
LOSS, CORRECT, COUNT, PRESENT = range(4)


def evaluate(run, batches: Iterable[Batch], device: torch.device) -> dict[str, float | int | None]:
    """Collective: return the held-out figures of a model, by the names in FIGURES.

    The ranks share the batches, and all get the same figures, which do not depend on their number.

    For each kind of positions, KIND_loss is the masked-LM loss in nats per position, KIND_accuracy the
    share of top-1 predictions that are right, and KIND_count the number of positions. KIND_loss_se and
    KIND_accuracy_se are standard errors over sequences, see `mean_and_error`. Means are None where there
    are no positions or their loss is not finite, and errors are also None where there is one sequence.

    Args:
        run: An engine or an Objective.
        batches: This rank's share of `heldout_batches`: of the ranks' numbers of batches, which are equal,
            the first comes from the first rank, the second from the second, and so on.
        device: The device to run on.
    """
    return figures_of(sum_over_ranks(_measure_heads(run, batches, device), len(KINDS), device))


def evaluate_alone(run, batches: Iterable[Batch], device: torch.device) -> dict[str, float | int | None]:
    """Return the figures of `evaluate` that this rank measures by itself, on all of the batches."""
    return figures_of(torch.stack(_measure_heads(run, batches, device)).cpu().sum(0))


def _measure_heads(run, batches: Iterable[Batch], device: torch.device) -> list[Tensor]:
    def measure(batch: Batch) -> Tensor:
        _, results = run(batch.input_ids, batch.attention_mask, batch.labels, mode="evaluate")
        return sum_moments(batch, results)

    return measure_all(run, measure, batches, device)


def measure_all(run, measure: Callable[[Batch], Tensor], batches: Iterable[Batch], device: torch.device) -> list:
    """Return what `measure` returns of each batch, with `run` in evaluation mode."""
    was_training = run.training
    run.eval()
    moments = []
    # the last batch is smaller and not worth compiling anew
    with torch.no_grad(), without_compilation():
        for batch in batches:
            moments.append(measure(batch.to(device)))
            note_progress()
    run.train(was_training)
    return moments


def figures_of(moments: Tensor) -> dict[str, float | int | None]:
    """Return the figures that `evaluate` returns from the sum over batches of `sum_moments`."""
    figures: dict[str, float | int | None] = {}
    for kind, sums in zip(KINDS, moments.tolist(), strict=True):
        figures[f"{kind}_loss"], figures[f"{kind}_loss_se"] = mean_and_error(sums, LOSS)
        figures[f"{kind}_accuracy"], figures[f"{kind}_accuracy_se"] = mean_and_error(sums, CORRECT)
        figures[f"{kind}_count"] = int(sums[COUNT][PRESENT])
    return figures


def sum_over_ranks(moments: list[Tensor], kinds: int, device: torch.device) -> Tensor:
    """Collective: return the sum of all ranks' moments, float64 [kinds, 4, 4] on the CPU.

    They are added in the order of the batches, so the sum has the same bits for any number of ranks.
    """
    own = torch.stack(moments) if moments else torch.zeros(0, kinds, 4, 4, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        of_ranks = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(of_ranks, own)
        own = torch.stack(of_ranks, dim=1).flatten(0, 1)
    total = torch.zeros(kinds, 4, 4, dtype=torch.float64)
    for part in own.cpu():
        total += part
    return total


def without_compilation() -> AbstractContextManager:
    """Keep what is compiled from being used; where torch._dynamo, which takes seconds, is not loaded, nothing is."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def sum_moments(batch: Batch, results: Tensor) -> Tensor:
    """Return for each kind of positions the sum over sequences of x xᵀ, float64 [len(KINDS), 4, 4].

    x is a sequence's (LOSS, CORRECT, COUNT, PRESENT). A position counts as what the model sees there, so
    a random token that is the right one counts as kept.

    Args:
        batch: Held-out sequences.
        results: float64 [selected positions, 2], the loss and whether the prediction is right; or their
            differences between two models, whose standard errors are then those of a paired comparison.
    """
    if batch.shows_mask is None:
        raise ValueError("a batch to evaluate must say which positions show [MASK]; heldout_batches makes such")
    selected = batch.labels >= 0
    shows_mask = selected & batch.shows_mask
    shows_answer = selected & ~shows_mask & (batch.input_ids == batch.labels)
    kinds = torch.stack([shows_mask, selected, shows_answer, selected & ~shows_mask & ~shows_answer])
    values = results.new_zeros(3, *selected.shape)
    values[:, selected] = torch.cat([results, torch.ones_like(results[:, :1])], dim=1).t()
    # chosen, not multiplied: a loss that is not finite concerns its own kinds only
    sums = torch.where(kinds[:, None], values, 0.0).sum(-1)
    x = torch.cat([sums, (sums[:, COUNT, None] > 0).double()], dim=1)
    return x @ x.transpose(1, 2)


def mean_and_error(moments: list[list[float]], value: int) -> tuple[float | None, float | None]:
    """Return the mean of a quantity per position, and its standard error.

    Predictions within a sequence are not independent, so the error is that of a ratio of two sums over
    independent sequences, with v and n a sequence's quantity and number of positions, over S sequences:

        mean = Σ v / Σ n        error = √(S / (S − 1) · Σ (v − mean · n)²) / Σ n

    Args:
        moments: [4, 4], as `sum_moments` returns them.
        value: LOSS or CORRECT.

    Source: Cochran 1977, Sampling Techniques, section 6.3 (the ratio estimator).
    """
    count, sequences = moments[COUNT][PRESENT], moments[PRESENT][PRESENT]
    if count == 0 or not math.isfinite(moments[LOSS][PRESENT]):
        return None, None
    mean = moments[value][PRESENT] / count
    if sequences < 2:
        return mean, None
    squares = moments[value][value] - 2 * mean * moments[value][COUNT] + mean**2 * moments[COUNT][COUNT]
    return mean, math.sqrt(max(squares, 0.0) * sequences / (sequences - 1)) / count
