"""Held-out figures are sums over masked tokens divided by their number; without such tokens there are none."""

import torch

from ds_distill.data.batch import Batch
from ds_distill.training.evaluation import evaluate
from ds_distill.utils.files import json_text


class Counted(torch.nn.Module):
    """A model that returns (loss, right predictions, masked tokens) of a batch.

    Each masked token counts half a nat, and every second one is right.
    """

    def __init__(self, loss: float = 0.5):
        super().__init__()
        self.loss = loss

    def forward(self, input_ids, attention_mask, labels, mode):
        masked = int((labels != -100).sum())
        sums = torch.tensor([self.loss * masked, masked // 2, masked], dtype=torch.float64)
        return sums[0], sums


def batch(*labels: int) -> Batch:
    return Batch(torch.zeros(1, len(labels), dtype=torch.long), torch.tensor([labels]), None)


def test_figures_are_means_over_masked_tokens():
    figures = evaluate(Counted(), [batch(5, -100, 6, 7), batch(-100, 8)], torch.device("cpu"))
    assert figures == {"mlm_loss": 0.5, "mlm_accuracy": 0.25}


def test_nothing_masked_is_not_measured():
    for batches in ([], [batch(-100, -100)]):
        figures = evaluate(Counted(), batches, torch.device("cpu"))
        assert figures == {"mlm_loss": None, "mlm_accuracy": None}
    diverged = evaluate(Counted(float("nan")), [batch(5)], torch.device("cpu"))
    assert json_text(diverged) == '{"mlm_loss": null, "mlm_accuracy": null}'
