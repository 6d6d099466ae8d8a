"""Test the losses between relations of tokens, and their gradients, against closed forms in float64."""

import pytest
import torch

from benchmarks.reference import closed_form
from benchmarks.reference.closed_form import relative
from ds_distill.losses import attention_score_mse, relation_kl
from ds_distill.losses.relations import ensemble_relation_kl

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def problem(shape=(2, 3, 9), widths=(8, 12), dtype=torch.float32, padding=False, documents=False, seed=0):
    """Return the student's (a, b), the teacher's (a, b), a mask or None, and document numbers or None."""
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(*shape, width, generator=g).to(dtype) for width in widths for _ in "ab"]
    tokens = (shape[0], shape[2])
    mask = torch.rand(tokens, generator=g) < 0.7 if padding else None
    numbers = torch.randint(-1, 2, tokens, generator=g) if documents else None  # in any order
    return tuple(tensors[:2]), tuple(tensors[2:]), mask, numbers


def gradients(loss, leaves):
    return torch.autograd.grad(loss * 0.5, leaves)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padding,documents", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", ["relation_kl", "attention_score_mse"])
def test_value_and_gradient(name, dtype, padding, documents):
    student, teacher, mask, numbers = problem(dtype=dtype, padding=padding, documents=documents)
    leaves = [x.clone().requires_grad_() for x in student]
    function = {"relation_kl": relation_kl, "attention_score_mse": attention_score_mse}[name]
    loss = function(*leaves, *teacher, token_mask=mask, document_ids=numbers)
    if name == "relation_kl":
        expected = closed_form.relation_kl(student, [teacher], [1.0], mask, numbers)
    else:
        expected = closed_form.attention_score_mse(student, teacher, mask, numbers)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.item() == pytest.approx(expected[0].item(), rel=min(TOLERANCES[dtype], 1e-5))
    for got, want in zip(gradients(loss, leaves), expected[1:], strict=True):
        assert got.dtype == dtype and relative(got, want * 0.5) <= TOLERANCES[dtype]


def test_a_self_relation_has_the_sum_of_both_gradients():
    student, teacher, mask, numbers = problem(padding=True, documents=True)
    leaf = student[0].clone().requires_grad_()
    loss = relation_kl(leaf, leaf, teacher[0], teacher[0], token_mask=mask, document_ids=numbers)
    expected = closed_form.relation_kl((leaf, leaf), [(teacher[0], teacher[0])], [1.0], mask, numbers)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert relative(gradients(loss, [leaf])[0], (expected[1] + expected[2]) * 0.5) <= 1e-5


def test_several_teachers_of_different_widths():
    student, teacher, mask, numbers = problem(padding=True, documents=True)
    other = problem(widths=(8, 5), seed=1)[1]
    leaves = [x.clone().requires_grad_() for x in student]
    loss = ensemble_relation_kl(*leaves, [teacher, other], [1, 3], token_mask=mask, document_ids=numbers)
    expected = closed_form.relation_kl(student, [teacher, other], [0.25, 0.75], mask, numbers)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
    for got, want in zip(gradients(loss, leaves), expected[1:], strict=True):
        assert relative(got, want * 0.5) <= 1e-5
