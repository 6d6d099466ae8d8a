"""Test that a run computes on the device that was asked for, or says why not."""

import os

import pytest
import torch

from ds_distill import api
from ds_distill.recipe import Recipe
from ds_distill.training.device import local_device
from ds_distill.utils.errors import UserError


@pytest.mark.parametrize(
    ("wanted", "there", "words"), [("cuda", False, "torch finds no GPU"), ("cpu", True, "start Python anew")]
)
def test_a_device_that_cannot_be_had_is_named(monkeypatch, wanted, there, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    with pytest.raises(UserError, match=f"training.device = {wanted}: .*{words}"):
        local_device(wanted)


def test_the_cpu_can_be_asked_for_in_python(monkeypatch):
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    recipe = Recipe()
    with api._one_job("distill", recipe):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    recipe.training.device = "cpu"
    with api._one_job("distill", recipe):
        assert os.environ["DS_ACCELERATOR"] == "cpu" and os.environ["CUDA_VISIBLE_DEVICES"] == ""
