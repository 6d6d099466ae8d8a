"""Evaluation of a bare encoder on held-out text: it guesses no tokens, so its figures are the terms of its loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ds_distill.data.batch import Batch
from ds_distill.losses.objective import Objective
from ds_distill.models.ensemble import Ensemble
from ds_distill.models.teacher import Teacher
from ds_distill.training.evaluation import COUNT, LOSS, PRESENT, mean_and_error, measure_all, sum_over_ranks


def evaluate_matches(
    run, objective: Objective, teacher: Teacher | Ensemble, batches: Iterable[Batch], device: torch.device
) -> dict[str, float | int | None]:
    """Collective: return the held-out figures of a bare encoder beside its teacher.

    They are the mean of each term over real tokens, under the term's name, with its standard error over sequences under
    NAME_se, see `mean_and_error`; "loss" and "loss_se", the same of the weighted sum of the terms; and "count", the
    number of tokens. The texts are masked as for `training.evaluation.evaluate`.

    Args:
        run: An engine or an Objective.
        objective: The Objective that `run` runs.
        teacher: The teacher.
        batches: As for `training.evaluation.evaluate`.
        device: The device to run on.
    """
    names, weights = (*objective.weights, "loss"), list(objective.weights.values())

    def measure(batch: Batch) -> Tensor:
        inputs = batch.input_ids, batch.attention_mask
        targets = teacher.targets(*inputs, sites=objective.teacher_sites, head=False)
        masks = {"loss_mask": batch.loss_mask, "document_ids": batch.document_ids}
        _, sums = run(*inputs, batch.labels, targets=targets, **masks, mode="evaluate")
        counted = batch.token_mask if batch.loss_mask is None else batch.loss_mask
        tokens = torch.ones_like(batch.input_ids) if counted is None else counted
        return _sum_moments(sums, tokens.sum(1).double(), weights)

    moments = sum_over_ranks(measure_all(run, measure, batches, device), len(names), device).tolist()
    figures: dict[str, float | int | None] = {}
    for name, sums in zip(names, moments, strict=True):
        figures[name], figures[f"{name}_se"] = mean_and_error(sums, LOSS)
    return figures | {"count": int(moments[0][COUNT][PRESENT])}


def _sum_moments(sums: Tensor, tokens: Tensor, weights: list[float]) -> Tensor:
    """Return what `training.evaluation.sum_moments` does, for each term and then their weighted sum.

    The result is float64 [terms + 1, 4, 4].

    Args:
        sums: float64 [B, terms], the sum of each term over a sequence's tokens.
        tokens: float64 [B], a sequence's number of real tokens.
        weights: The terms' weights.
    """
    values = torch.cat([sums, (sums @ sums.new_tensor(weights))[:, None]], dim=1).t()
    x = torch.zeros(*values.shape, 4, dtype=torch.float64, device=sums.device)
    x[..., LOSS], x[..., COUNT], x[..., PRESENT] = values, tokens, tokens > 0
    return x.transpose(1, 2) @ x
