import numpy as np
import pytest
import torch

from ds_distill.distributed.process_group import start_distributed
from ds_distill.training.nonfinite import NonFiniteGuard
from ds_distill.training.state import StepResult
from ds_distill.utils.errors import UserError


class Order:
    """The part of a BatchLoader that a NonFiniteGuard uses."""

    rank, store = 0, range(10)

    def rank_entries(self, step: int):
        return [np.arange(2)]


@pytest.mark.parametrize(
    "losses, remedy",
    [
        ([float("nan"), 4.0, 0.1], "the teacher's outputs are not. Give another teacher"),
        ([float("inf"), 4.0, float("nan")], "the teacher's outputs are not. Give another teacher"),
        ([float("nan"), float("nan"), float("nan")], "Lower training.learning_rate"),
        ([3.0, float("inf"), 0.1], "Lower training.learning_rate"),
    ],
)
def test_a_teacher_whose_outputs_are_no_numbers_is_blamed(tmp_path, losses, remedy):
    start_distributed()
    watch = NonFiniteGuard(Order(), 1, tmp_path, scaled=False)
    with pytest.raises(UserError, match=remedy):
        named = dict(zip(("kl", "mlm", "cosine"), losses, strict=True))
        watch.check(
            0,
            StepResult(float("nan"), named, None, True, False, False, False, False, False, 0.0, [torch.tensor(losses)]),
        )
