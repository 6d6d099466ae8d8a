"""Test each loss between hidden states, and its gradient, against a float64 formula."""

import pytest
import torch

from benchmarks.reference.closed_form import relative
from ds_distill.losses.matching import LOSSES


def cosine(student, teacher):
    """Return the loss of each token and its gradient."""
    s_norm, t_norm = student.norm(dim=-1, keepdim=True), teacher.norm(dim=-1, keepdim=True)
    similarity = (student * teacher).sum(-1, keepdim=True) / (s_norm * t_norm)
    return 1 - similarity.squeeze(-1), similarity * student / s_norm**2 - teacher / (s_norm * t_norm)


def mse(student, teacher):
    """Return the loss of each token and its gradient."""
    difference = student - teacher
    return difference.square().mean(-1), 2 * difference / difference.shape[-1]


CLOSED_FORMS = {"cosine": cosine, "mse": mse}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def test_every_loss_has_a_closed_form():
    assert CLOSED_FORMS.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("masked", [False, True])
def test_value_and_gradient(name, dtype, masked):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(3, 7, 16, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(3, 7, generator=generator) < 0.6 if masked else None
    leaf = student.clone().requires_grad_()
    value = LOSSES[name](leaf, teacher, mask)
    value.backward()
    of_tokens, gradient = CLOSED_FORMS[name](student.double(), teacher.double())
    kept = torch.ones(3, 7, dtype=torch.bool) if mask is None else mask
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    # the sum itself is in fp32 at least, whatever the dtype of the states
    assert value.item() == pytest.approx(of_tokens[kept].sum().item(), rel=min(TOLERANCES[dtype], 1e-5))
    assert relative(leaf.grad, gradient * kept.unsqueeze(-1)) <= TOLERANCES[dtype]


@pytest.mark.parametrize("name", LOSSES)
def test_padding_of_any_value_does_not_count(name):
    states = [torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    value = LOSSES[name](*states, mask)
    for padding in (1e4, torch.inf, torch.nan):
        for state in states:
            state[~mask] = padding
        student = states[0].clone().requires_grad_()
        assert torch.equal(found := LOSSES[name](student, states[1], mask), value)
        found.backward()
        assert student.grad.isfinite().all() and not student.grad[~mask].any()
