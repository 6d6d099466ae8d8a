"""Test the mean of the weights over the last steps against the mean of what was recorded."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.weight_average import WeightAverage
from ds_distill.utils.errors import UserError


class Model(nn.Linear):
    device = torch.device("cpu")


def run(model, average, weights, steps, last):
    """Give the model the weights of each of `steps` in turn."""
    for step in steps:
        with torch.no_grad():
            model.weight.copy_(weights[step])
        average.on_step_end(None, SimpleNamespace(global_step=step, max_steps=last), None)


@pytest.mark.parametrize(("share", "first"), [(0.33, 8), (1.0, 1), (0.01, 10)])
def test_the_mean_is_of_the_last_share_of_steps_and_resumes_equal(tmp_path, share, first):
    weights = torch.randn(11, 3, 4)
    model, again = Model(4, 3), Model(4, 3)
    average = WeightAverage(model, share)
    run(model, average, weights, range(1, 9), 10)
    average.save(tmp_path)
    run(model, average, weights, range(9, 11), 10)
    assert torch.equal(model.weight, weights[10]), "the training continues with its own weights"
    average.apply()
    assert torch.allclose(model.weight, weights[first:].mean(0), atol=1e-6)
    resumed = WeightAverage(again, share, str(tmp_path))
    run(again, resumed, weights, range(9, 11), 10)
    resumed.apply()
    assert torch.equal(again.weight, model.weight)


def test_a_share_of_the_steps_is_at_most_all_of_them():
    with pytest.raises(UserError, match="finetune.average_weights = 1.5: must be between 0 and 1"):
        FinetuneConfig(average_weights=1.5).check()
