"""Test the losses between relations of tokens, and their gradients, against closed forms in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from benchmarks.harness.machine import peak_allocated_bytes
from benchmarks.reference import closed_form
from benchmarks.reference.closed_form import relative
from benchmarks.reference.recipe import reference_attention_score_mse, reference_relation_kl
from ds_distill.config.losses import Match
from ds_distill.losses import attention_score_mse, relation_kl
from ds_distill.losses.head_terms import AttentionLoss, RelationLoss
from ds_distill.losses.relations import ensemble_relation_kl
from ds_distill.models.intermediates import Site

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
LOSSES = {
    relation_kl: lambda student, teacher, *options: closed_form.relation_kl(student, [teacher], [1.0], *options),
    attention_score_mse: closed_form.attention_score_mse,
}
each_loss = pytest.mark.parametrize("loss", LOSSES)


def problem(shape=(2, 3, 9), widths=(8, 12), dtype=torch.float32, padding=0.3, documents=True, seed=0):
    """Return the student's (a, b), the teacher's (a, b), a mask or None, and document numbers or None."""
    g = torch.Generator().manual_seed(seed)
    # as a layer leaves them: views of [B, L, R · d]
    tensors = [
        torch.randn(shape[0], shape[2], shape[1], width, generator=g).to(dtype).transpose(1, 2)
        for width in widths
        for _ in "ab"
    ]
    tokens = (shape[0], shape[2])
    mask = torch.rand(tokens, generator=g) >= padding if padding else None
    numbers = torch.randint(-1, 2, tokens, generator=g) if documents else None  # in any order
    return tuple(tensors[:2]), tuple(tensors[2:]), mask, numbers


def check(loss, student, teacher, mask, numbers, tolerance, same=False):
    """Compare the loss and its gradient, times 0.5, with the closed form; `same` takes the first tensor for both."""
    a = student[0].detach().requires_grad_()
    leaves = (a,) if same else (a, student[1].detach().requires_grad_())
    value = loss(leaves[0], leaves[-1], *teacher, token_mask=mask, document_ids=numbers)
    expected, *gradients = LOSSES[loss]((leaves[0], leaves[-1]), teacher, mask, numbers)
    assert value.dtype == torch.promote_types(a.dtype, torch.float32) and value.shape == ()
    assert value.item() == pytest.approx(expected.item(), rel=min(tolerance, 1e-5), abs=1e-6)
    if same:
        gradients = [gradients[0] + gradients[1]]
    for got, want, leaf in zip(torch.autograd.grad(value * 0.5, leaves), gradients, leaves, strict=True):
        assert got.dtype == leaf.dtype and got.isfinite().all()
        scale = want.norm() + 1e-2 * sum(x.double().norm() for x in leaves)  # a gradient that cancels has no digits
        assert (got.double() - 0.5 * want).norm() <= 0.5 * tolerance * scale


@each_loss
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padding,documents", [(0, False), (0.3, False), (0, True), (0.3, True)])
def test_value_and_gradient(loss, dtype, padding, documents):
    student, teacher, mask, numbers = problem(dtype=dtype, padding=padding, documents=documents)
    check(loss, student, teacher, mask, numbers, TOLERANCES[dtype])
    check(loss, student, teacher, mask, numbers, TOLERANCES[dtype], same=True)
    check(loss, student, (teacher[0], teacher[0]), mask, numbers, TOLERANCES[dtype], same=True)


@each_loss
@hypothesis_settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 24)),
    widths=st.tuples(st.integers(1, 33), st.integers(1, 33)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    padding=st.sampled_from([0, 0.3, 0.9, 1.0]),
    documents=st.booleans(),
    same=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape(loss, shape, widths, dtype, padding, documents, same, seed):
    student, teacher, mask, numbers = problem(shape, widths, dtype, padding, documents, seed)
    check(loss, student, teacher, mask, numbers, TOLERANCES[dtype], same)


@each_loss
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("same", [False, True])
def test_a_student_equal_to_its_teacher_has_exactly_zero(loss, dtype, same):
    student, _, mask, numbers = problem(dtype=dtype)
    teacher = tuple(x.contiguous() for x in student)  # in other places of memory
    leaves = [x.detach().requires_grad_() for x in student]
    leaves, teacher = ((leaves[0],) * 2, (teacher[0],) * 2) if same else (leaves, teacher)
    value = loss(*leaves, *teacher, token_mask=mask, document_ids=numbers)
    value.backward()
    assert value.item() == 0
    assert all(not leaf.grad.any() for leaf in leaves)


@each_loss
def test_a_student_near_its_teacher_keeps_its_digits(loss):
    """The scores nearly cancel, as at the end of a training."""
    student, _, mask, numbers = problem((2, 2, 40), (16, 16))
    g = torch.Generator().manual_seed(1)
    teacher = tuple(x * (1 + 1e-2 * torch.randn(x.shape, generator=g)) for x in student)
    leaves = [x.detach().requires_grad_() for x in student]
    value = loss(*leaves, *teacher, token_mask=mask, document_ids=numbers)
    expected, *gradients = LOSSES[loss](student, teacher, mask, numbers)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    for got, want in zip(torch.autograd.grad(value, leaves), gradients, strict=True):
        assert relative(got, want) <= 1e-4


def test_the_scores_of_a_rotated_teacher_have_no_error():
    """Rotating both sides changes every vector and no score, so the sums of squares cancel."""
    student, _, _, _ = problem((2, 2, 40), (16, 16))
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    value = attention_score_mse(*student, *(x @ rotation for x in student))
    assert 0 <= value.item() <= 1e-9


@each_loss
def test_only_tensors_that_require_a_gradient_have_one(loss):
    student, teacher, mask, numbers = problem()
    teacher = tuple(x.detach().requires_grad_() for x in teacher)
    full = [x.detach().requires_grad_() for x in student]
    gradients = torch.autograd.grad(loss(*full, *teacher, token_mask=mask, document_ids=numbers), full)
    for which in (0, 1):
        leaves = [x.detach().requires_grad_(number == which) for number, x in enumerate(student)]
        loss(*leaves, *teacher, token_mask=mask, document_ids=numbers).backward()
        assert torch.equal(leaves[which].grad, gradients[which])
        assert leaves[1 - which].grad is None
    assert all(x.grad is None for x in teacher)
    assert not loss(*student, *teacher).requires_grad
    with torch.no_grad():
        assert not loss(*full, *teacher).requires_grad


@each_loss
def test_padding_of_any_value_is_not_read(loss):
    student, teacher, mask, numbers = problem()
    student = tuple(x.contiguous() for x in student)
    results = []
    for value in (0.0, float("nan"), float("inf")):
        for x in (*student, *teacher):
            x.transpose(1, 2)[~mask] = value
        leaves = [x.clone().requires_grad_() for x in student]
        got = loss(*leaves, *teacher, token_mask=mask, document_ids=numbers)
        results.append((got, *torch.autograd.grad(got, leaves)))
    for result in results:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))
        assert not any(gradient.transpose(1, 2)[~mask].any() for gradient in result[1:])


@each_loss
@pytest.mark.parametrize("shape", [(0, 3, 9), (2, 0, 9), (2, 3, 0), (2, 3, 1)])
def test_nothing_to_compare(loss, shape):
    """A token alone has the same distribution everywhere, though not the same score."""
    student, teacher, _, _ = problem(shape)
    leaves = [x.detach().requires_grad_() for x in student]
    value = loss(*leaves, *teacher)
    value.backward()
    assert value.item() == 0 or (loss is attention_score_mse and shape[2] == 1)
    assert all(x.grad.shape == x.shape for x in leaves)


@each_loss
def test_autocast_changes_nothing(loss):
    student, teacher, mask, _ = problem()
    leaves = [x.detach().requires_grad_() for x in student]
    plain = loss(*leaves, *teacher, token_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*leaves, *teacher, token_mask=mask)
    assert torch.equal(value, plain)


@each_loss
def test_a_second_derivative_is_refused(loss):
    student, teacher, _, _ = problem()
    leaf = student[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, leaf, *teacher), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        (gradient.square().sum() + leaf.sum()).backward()
    value = loss(leaf, leaf, *teacher)
    value.backward(retain_graph=True)
    once = leaf.grad.clone()
    value.backward()
    assert torch.equal(leaf.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@each_loss
@pytest.mark.parametrize("same", [False, True])
def test_within_torch_compile(loss, same):
    student, teacher, mask, numbers = problem()

    def step(a, b):
        return loss(a, a if same else b, *teacher, token_mask=mask, document_ids=numbers) * 0.5

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [x.detach().requires_grad_() for x in student]
        value = run(*leaves)
        results.append((value, *torch.autograd.grad(value, leaves[:1] if same else leaves)))
    torch._dynamo.reset()
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_several_teachers_of_different_widths():
    student, teacher, mask, numbers = problem()
    other = problem(widths=(8, 5), seed=1)[1]
    for same in (False, True):
        leaves = [x.detach().requires_grad_() for x in student[: 1 if same else 2]]
        value = ensemble_relation_kl(
            leaves[0], leaves[-1], [teacher, other], [1, 3], token_mask=mask, document_ids=numbers
        )
        both = (leaves[0], leaves[-1])
        expected, *gradients = closed_form.relation_kl(both, [teacher, other], [0.25, 0.75], mask, numbers)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        for got, want in zip(torch.autograd.grad(value, leaves), [sum(gradients)] if same else gradients, strict=True):
            assert relative(got, want) <= 1e-5


def test_teachers_of_equal_weight_by_default_and_one_alone_is_relation_kl():
    student, teacher, mask, _ = problem()
    other = problem(seed=1)[1]
    mean = ensemble_relation_kl(*student, [teacher, other], token_mask=mask)
    assert torch.equal(mean, ensemble_relation_kl(*student, [teacher, other], [2.0, 2.0], token_mask=mask))
    alone = ensemble_relation_kl(*student, [teacher], [7.0], token_mask=mask)
    assert torch.equal(alone, relation_kl(*student, *teacher, token_mask=mask))


@each_loss
def test_what_does_not_fit_is_named(loss):
    student, teacher, mask, numbers = problem()
    with pytest.raises(ValueError, match=r"teacher \[2, 3, 8, 12\] and \[2, 3, 9, 12\]"):
        loss(*student, teacher[0][:, :, :8], teacher[1])
    with pytest.raises(ValueError, match=r"student \[3, 9, 8\]"):
        loss(student[0][0], student[1][0], *teacher)
    with pytest.raises(ValueError, match=r"token_mask \[9\]"):
        loss(*student, *teacher, token_mask=mask[0])
    with pytest.raises(ValueError, match=r"document_ids \[2, 9\] torch.float32"):
        loss(*student, *teacher, document_ids=numbers.float())
    with pytest.raises(ValueError, match=r"weights \[1.0, -1.0\]"):
        ensemble_relation_kl(*student, [teacher, teacher], [1, -1])


def term(loss: str):
    """Return a term of the objective, of one layer of 48 heads, as a function of vectors [B, heads, L, d]."""
    match = Match(loss, of="query_key" if loss == "attention" else "query")
    made = (AttentionLoss if loss == "attention" else RelationLoss)(match, [(0, 0)], [48])

    def compute(a, b, t_a, t_b):
        queries, keys, t_queries, t_keys = (x.transpose(1, 2).flatten(2) for x in (a, b, t_a, t_b))
        student, teacher = {Site("query", 0): queries}, {Site("query", 0): t_queries}
        if loss == "attention":
            student, teacher = student | {Site("key", 0): keys}, teacher | {Site("key", 0): t_keys}
        return made(student, teacher, None)

    return compute


@pytest.mark.parametrize(
    "loss,plain",
    [
        (relation_kl, reference_relation_kl),
        (attention_score_mse, reference_attention_score_mse),
        (term("relation"), reference_relation_kl),
        (term("attention"), reference_attention_score_mse),
    ],
    ids=["relations", "attention scores", "the term of relations", "the term of attention scores"],
)
def test_extra_memory_is_two_percent_of_the_plain_form(loss, plain):
    """At 64 × 512 tokens and 48 heads; both forms' memory grows by the same with each further sequence."""

    def extra(job, sequences):
        # as a layer leaves them: [B, L, heads · d]
        student = torch.randn(sequences, 512, 48, 16, requires_grad=True)
        teacher = torch.randn(sequences, 512, 48, 16).transpose(1, 2)
        heads = student.transpose(1, 2)
        peak = peak_allocated_bytes(
            lambda: torch.autograd.grad(job(heads, heads, teacher, teacher) * 0.5, student), student.device
        )
        return peak - 4 * student.numel()  # without the gradient itself

    one, two = extra(loss, 1), extra(loss, 2)
    assert one + 63 * (two - one) <= 0.02 * 64 * extra(plain, 1)
