"""Test the bodies of the losses between relations against closed forms in float64, tile by tile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.reference import closed_form
from benchmarks.reference.closed_form import relative
from ds_distill.kernels import fused_relations
from ds_distill.kernels.relation_ops import relation_loss

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["plain", "torch", "triton"])
def backend(request, monkeypatch):
    """Name a body whose tiles are so small that a problem has several, some of them incomplete."""
    monkeypatch.setitem(fused_relations.TILE, "cpu", 300)
    if request.param == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("with a GPU `python -m benchmarks.gpu.checks` runs it there")
        from ds_distill.kernels import relations_triton

        monkeypatch.setattr(relations_triton, "BLOCKS", {64: (16, 16)})
    return request.param


def make(width, dtype, seed, same=False):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(2, 20, 2, width, generator=g).to(dtype).transpose(1, 2) for _ in "ab")
    return (a, a) if same else (a, b)


def check(backend, student, teachers, weights, mask, documents, tolerance, per_token=False):
    """Compare the body's loss, times 0.5, and its gradient with the closed form."""
    a = student[0].detach().requires_grad_()
    b = a if student[1] is student[0] else student[1].detach().requires_grad_()
    value = relation_loss((a, b), teachers, weights, mask, documents, backend, per_token=per_token)
    if weights is None:
        expected, *gradients = closed_form.attention_score_mse(
            student, teachers[0], mask, documents, per_token=per_token
        )
    else:
        expected, *gradients = closed_form.relation_kl(student, teachers, weights, mask, documents)
    (value * 0.5).backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    gradients = [gradients[0] + gradients[1]] if b is a else gradients
    for got, want in zip((a.grad, b.grad), gradients, strict=False):
        assert relative(got, 0.5 * want) <= tolerance


MASK = torch.arange(40).reshape(2, 20) % 7 != 3
DOCUMENTS = torch.tensor([[5] * 9 + [-2] * 3 + [7] * 8, [1] * 20])
DTYPES = [
    (torch.float32, torch.float32, 1e-5),
    (torch.bfloat16, torch.float16, 1e-2),
    (torch.float16, torch.float32, 2e-3),
]


@pytest.mark.parametrize("dtype,t_dtype,tolerance", DTYPES)
@pytest.mark.parametrize("weights", [[1.0], None])
def test_self_relations(backend, dtype, t_dtype, tolerance, weights):
    student, teacher = make(8, dtype, 1, same=True), make(20, t_dtype, 2, same=True)
    check(backend, student, [teacher], weights, MASK, DOCUMENTS, tolerance)


# Self-relations have all dtypes; Triton's interpreter takes seconds for each.
@pytest.mark.parametrize(
    "dtype,t_dtype,tolerance", [*DTYPES[:1], *(pytest.param(*case, marks=pytest.mark.long) for case in DTYPES[1:])]
)
@pytest.mark.parametrize("weights", [[1.0], None])
def test_queries_and_keys(backend, dtype, t_dtype, tolerance, weights):
    student, teacher = make(20, dtype, 1), make(8, t_dtype, 2)
    check(backend, student, [teacher], weights, MASK, None, tolerance)


@pytest.mark.parametrize("same", [(True, False), (False, True)])
@pytest.mark.parametrize("weights", [[1.0], None])
def test_a_self_relation_of_one_side_only(backend, same, weights):
    student, teacher = make(8, torch.float32, 1, same[0]), make(8, torch.float32, 2, same[1])
    check(backend, student, [teacher], weights, None, DOCUMENTS, 1e-5)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(
    "case,mask,documents",
    [
        (DTYPES[0], MASK, DOCUMENTS),
        (DTYPES[0], None, None),
        pytest.param(DTYPES[1], MASK, None, marks=pytest.mark.long),
        pytest.param(DTYPES[2], None, DOCUMENTS, marks=pytest.mark.long),
    ],
)
def test_a_mean_for_each_token(backend, case, mask, documents, same):
    dtype, t_dtype, tolerance = case
    student, teacher = make(8, dtype, 1, same), make(20, t_dtype, 2, same)
    check(backend, student, [teacher], None, mask, documents, tolerance, per_token=True)


@pytest.mark.parametrize("same", [False, True])
def test_several_teachers(backend, same):
    teachers = [make(8, torch.float32, 2, same), make(24, torch.float16, 3, same)]
    check(backend, make(8, torch.float32, 1, same), teachers, [0.25, 0.75], MASK, DOCUMENTS, 1e-5)


@pytest.mark.parametrize(
    "dtype, same",
    [
        (torch.float32, True),
        (torch.bfloat16, False),
        pytest.param(torch.float32, False, marks=pytest.mark.long),
        pytest.param(torch.bfloat16, True, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("weights", [[1.0], None])
def test_equal_vectors(backend, dtype, weights, same):
    student = make(8, dtype, 1, same)
    a = student[0].detach().requires_grad_()
    pair = (a, a if same else student[1])
    value = relation_loss(pair, [student], weights, MASK, DOCUMENTS, backend)
    value.backward()
    assert value.item() == 0
    if backend == "plain":
        assert a.grad.abs().max() <= 1e-6
    else:
        assert not a.grad.any()


@pytest.mark.parametrize("weights", [[1.0], None])
def test_large_scores(backend, weights):
    """Scores of some thousands are exact to 1e-4 in fp32, in whatever order a processor adds; so is their softmax."""
    student, teacher = ([x * 30 for x in make(16, torch.float32, seed)] for seed in (1, 2))
    check(backend, tuple(student), [tuple(teacher)], weights, MASK, DOCUMENTS, 3e-4)


def test_padding_alone(backend):
    a = make(8, torch.float32, 1)[0].detach().requires_grad_()
    nothing = torch.zeros_like(MASK)
    for weights in ([1.0], None):
        value = relation_loss((a, a), [make(8, torch.float32, 2)], weights, nothing, None, backend)
        (gradient,) = torch.autograd.grad(value, a)
        assert value.item() == 0 and not gradient.any()


def test_triton_compiles_for_a_gpu():
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {
        "PYTHONPATH": str(ROOT)
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.kernels.relations_triton_worker"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 9, done.stderr[-2000:]
