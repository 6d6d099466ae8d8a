"""Test the fused vocabulary loss against a closed form in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness.machine import peak_bytes
from benchmarks.reference.closed_form import relative, vocabulary_loss
from ds_distill.kernels import fused_linear
from ds_distill.kernels.fused_linear import padded_vocab_size, release_workspace
from ds_distill.losses import fused_linear_distillation_loss
from ds_distill.training.compile import compile_unavailable_reason

ROOT = Path(__file__).parents[3]


def problem(
    rows, vocabulary, student, teacher, dtype=torch.float32, scale=1.0, masked=0.3, padding=False, bias=True, seed=0
):
    g = torch.Generator().manual_seed(seed)
    hs = torch.randn(rows, student, generator=g)
    ws = torch.randn(vocabulary, student, generator=g) * scale / student**0.5
    ht = torch.randn(rows, teacher, generator=g)
    wt = torch.randn(vocabulary, teacher, generator=g) * scale / teacher**0.5
    bs, bt = (torch.randn(vocabulary, generator=g), torch.randn(vocabulary, generator=g)) if bias else (None, None)
    labels = torch.randint(vocabulary, (rows,), generator=g)
    labels[torch.rand(rows, generator=g) >= masked] = -100
    mask = torch.rand(rows, generator=g) < 0.7 if padding else None
    return [x if x is None else x.to(dtype) for x in (hs, ws, bs, ht, wt, bt)], labels, mask


def run(tensors, labels, mask, temperature=2.0, a=5.0, b=2.0, kl_tokens="all", chunk=None, backend="torch"):
    leaves = [x if x is None else x.clone().requires_grad_() for x in tensors[:3]]
    loss, kl, mlm = fused_linear_distillation_loss(
        *leaves,
        *tensors[3:],
        labels,
        temperature=temperature,
        kl_weight=a,
        mlm_weight=b,
        kl_tokens=kl_tokens,
        token_mask=mask,
        chunk=chunk,
        backend=backend,
    )
    loss.backward()
    assert not kl.requires_grad and not mlm.requires_grad
    return loss.detach(), kl, mlm, [x if x is None else x.grad for x in leaves]


def check(tensors, labels, mask, tolerance, **options):
    loss, kl, mlm, grads = run(tensors, labels, mask, **options)
    options.pop("chunk", None)
    t, a, b, on = (options.get(k, d) for k, d in (("temperature", 2.0), ("a", 5.0), ("b", 2.0), ("kl_tokens", "all")))
    expected = vocabulary_loss(*tensors, labels, t, a, b, on, mask)
    for got, want in zip((kl, mlm) if a else (mlm,), expected[:2] if a else expected[1:2], strict=True):
        assert float(got) == pytest.approx(float(want), rel=tolerance, abs=1e-6)
    assert float(loss) == pytest.approx(a * float(expected[0]) + b * float(expected[1]), rel=tolerance, abs=1e-6)
    for got, want in zip(grads, expected[2:], strict=True):
        if got is not None:
            assert torch.isfinite(got).all()
            if float(want.norm()) == 0:
                assert float(got.norm()) == 0
            else:
                assert relative(got, want) <= tolerance


@pytest.mark.parametrize("kl_tokens", ["all", "masked"])
@pytest.mark.parametrize("weights", [(5.0, 2.0), (5.0, 0.0), (0.0, 2.0), (0.0, 0.0)])
@pytest.mark.parametrize("padding,bias", [(False, True), (True, True), (True, False)])
def test_every_option_in_fp32(kl_tokens, weights, padding, bias):
    tensors, labels, mask = problem(37, 211, 24, 40, padding=padding, bias=bias)
    check(tensors, labels, mask, 1e-5, a=weights[0], b=weights[1], kl_tokens=kl_tokens, chunk=8)


@pytest.mark.parametrize("kl_tokens", ["all", "masked"])
def test_hidden_states_of_16_bits_with_weights_of_32(kl_tokens):
    """As under autocast."""
    tensors, labels, mask = problem(37, 211, 24, 32, padding=True)
    mixed = [x.bfloat16() if x is not None and x.dim() == 2 and len(x) == 37 else x for x in tensors]
    leaf = mixed[0] = mixed[0].detach().requires_grad_()
    options = {"temperature": 2.0, "kl_weight": 5.0, "mlm_weight": 2.0, "kl_tokens": kl_tokens, "token_mask": mask}
    loss, *_ = fused_linear_distillation_loss(*mixed, labels, **options)
    loss.backward()
    exact = [x.detach().float() if x is not None else None for x in mixed]
    whole = exact[0].requires_grad_()
    expected, *_ = fused_linear_distillation_loss(*exact, labels, **options)
    expected.backward()
    assert torch.allclose(loss, expected, rtol=1e-3)
    assert leaf.grad.dtype == torch.bfloat16 and (leaf.grad.float() - whole.grad).norm() < 2e-2 * whole.grad.norm()


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000, None])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.7])
def test_any_chunking(chunk, temperature):
    tensors, labels, mask = problem(37, 997, 16, 16, padding=True)
    check(tensors, labels, mask, 1e-5, chunk=chunk, temperature=temperature)


@pytest.fixture
def all_is_compiled():
    """Beyond torch's limit of compilations, a function would run as it is written."""
    if reason := compile_unavailable_reason():
        pytest.skip(f"torch.compile: {reason}")
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield


OPTIONS = [{}, {"a": 0.0}, {"b": 0.0}, {"kl_tokens": "masked"}, {"temperature": 1.0, "chunk": 7}]


# Each new combination of dtype, bias and temperature compiles for seconds. Chunks are of 7 rows and of fewer, so that
# from the second chunk on the code takes any number of rows.
COMPILED = {"backend": "compiled", "temperature": 3.7, "chunk": 7}


@pytest.mark.usefixtures("all_is_compiled")
@pytest.mark.parametrize("options", [{}, {"a": 0.0}, {"b": 0.0}, {"kl_tokens": "masked"}])
def test_compiled(options):
    check(*problem(37, 256, 24, 32), 1e-5, **COMPILED, **options)
    check(*problem(37, 256, 24, 32, scale=1e4), 1e-5, **COMPILED, **options)
    if not options:
        half = problem(37, 256, 24, 32, dtype=torch.bfloat16, scale=8.0, padding=True, bias=False)
        check(*half, 2e-2, backend="compiled")


@pytest.mark.long
@pytest.mark.usefixtures("all_is_compiled")
@pytest.mark.parametrize("options", OPTIONS)
def test_compiled_for_other_shapes(options):
    for padding, bias in ((False, True), (True, False)):
        check(*problem(37, 211, 24, 32, padding=padding, bias=bias), 1e-5, backend="compiled", **options)
    tensors, labels, mask = problem(64, 503, 32, 48, dtype=torch.bfloat16, scale=8.0, padding=True)
    check(tensors, labels, mask, 2e-2, backend="compiled", **options)
    check(*problem(33, 301, 16, 16, scale=1e4), 1e-5, backend="compiled", **options)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("options", OPTIONS)
def test_triton(options, every, monkeypatch):
    """The kernel itself runs in Triton's interpreter, which needs about one second for each problem.

    The block is 64, so that a row has several blocks and an incomplete last one.
    """
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("with a GPU `python -m benchmarks.gpu.checks` runs it there")
    from ds_distill.kernels import row_losses_triton

    monkeypatch.setattr(row_losses_triton, "BLOCK", 64)
    check(*problem(11, 211, 24, 32, padding=True, bias=False), 2e-5, backend="triton", **options)
    if options and not every:
        return
    check(*problem(11, 211, 24, 32), 2e-5, backend="triton", **options)
    check(*problem(8, 203, 32, 48, dtype=torch.bfloat16, scale=8.0, padding=True), 2e-2, backend="triton", **options)
    check(*problem(5, 130, 16, 16, scale=1e3), 2e-5, backend="triton", **options)


@pytest.mark.parametrize("backend", ["torch", pytest.param("compiled", marks=pytest.mark.long), "triton"])
@pytest.mark.parametrize("options", [{}, {"kl_tokens": "masked", "chunk": 7}])
def test_columns_that_are_no_tokens(backend, options, monkeypatch, request):
    """On a GPU, each row of the logits is 16-byte aligned."""
    if backend == "compiled":
        request.getfixturevalue("all_is_compiled")
    if backend == "triton":
        pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("with a GPU `python -m benchmarks.gpu.checks` runs it there")
    monkeypatch.setattr(
        fused_linear, "padded_vocab_size", lambda vocabulary, device: padded_vocab_size(vocabulary, "cuda")
    )
    assert (
        padded_vocab_size(211, "cuda") == 256
        and padded_vocab_size(30_522, "cuda") == 30_528
        and padded_vocab_size(1000, "cuda") == 1000
        and padded_vocab_size(211, "cpu") == 211
    )
    for padding, bias in ((False, True), (True, False)):
        check(*problem(11, 211, 24, 32, padding=padding, bias=bias), 2e-5, backend=backend, **options)
    check(*problem(8, 203, 32, 48, dtype=torch.bfloat16, scale=8.0, padding=True), 2e-2, backend=backend, **options)
    check(*problem(5, 130, 16, 16, scale=1e3), 2e-5, backend=backend, **options)
    release_workspace()


def test_triton_compiles_for_a_gpu():
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {
        "PYTHONPATH": str(ROOT)
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.kernels.triton_worker"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 12, done.stderr[-2000:]


@pytest.mark.parametrize("masked", [0.0, 1.0])
def test_no_masked_token_and_only_masked_tokens(masked):
    check(*problem(9, 101, 8, 8, masked=masked), 1e-5)


def test_one_token():
    check(*problem(1, 53, 8, 12, masked=1.0), 1e-5)


def test_logits_of_ten_thousand():
    check(*problem(33, 301, 16, 16, scale=1e4), 1e-5, chunk=7)


@pytest.mark.parametrize("seed", range(5))
def test_bf16_within_thirty(seed):
    tensors, labels, mask = problem(64, 503, 32, 48, dtype=torch.bfloat16, scale=8.0, padding=True, seed=seed)
    check(tensors, labels, mask, 2e-2, chunk=10)


def test_bf16_is_finite_beyond():
    tensors, labels, mask = problem(64, 503, 32, 48, dtype=torch.bfloat16, scale=1e4)
    loss, kl, mlm, grads = run(tensors, labels, mask)
    assert all(torch.isfinite(x).all() for x in (loss, kl, mlm, *grads))


def test_autograd_in_float64():
    tensors, labels, mask = problem(6, 13, 4, 5, dtype=torch.float64, padding=True)

    def loss(hidden, weight, bias):
        return fused_linear_distillation_loss(
            hidden,
            weight,
            bias,
            *tensors[3:],
            labels,
            temperature=2.0,
            kl_weight=5.0,
            mlm_weight=2.0,
            token_mask=mask,
            chunk=4,
        )[0]

    assert torch.autograd.gradcheck(loss, [x.requires_grad_() for x in tensors[:3]])


def test_padding_may_hold_anything():
    tensors, labels, mask = problem(12, 31, 8, 8, padding=True)
    expected = run(tensors, labels, mask)
    tensors[0][~mask] = 1e30
    tensors[3][~mask] = 1e30
    actual = run(tensors, labels, mask)
    assert float(actual[0]) == pytest.approx(float(expected[0]), rel=1e-6)
    for gradient, reference in zip(actual[3], expected[3], strict=True):
        assert relative(gradient, reference) <= 1e-6


def test_no_gradient_is_computed_without_need(monkeypatch):
    tensors, labels, mask = problem(12, 31, 8, 8)
    calls, original = [], fused_linear._weight_gradient
    monkeypatch.setattr(fused_linear, "_weight_gradient", lambda *given: calls.append(given) or original(*given))
    with torch.no_grad():
        loss, _, _ = fused_linear_distillation_loss(*tensors, labels, temperature=2.0, kl_weight=1.0, mlm_weight=1.0)
    assert not loss.requires_grad and not calls
    assert float(run(tensors, labels, None, a=1.0, b=1.0)[0]) == float(loss) and calls


def test_mistakes_are_named():
    tensors, labels, _ = problem(12, 31, 8, 8)
    with pytest.raises(ValueError, match="kl_tokens"):
        fused_linear_distillation_loss(
            *tensors, labels, temperature=2.0, kl_weight=1.0, mlm_weight=1.0, kl_tokens="some"
        )
    with pytest.raises(ValueError, match="labels"):
        fused_linear_distillation_loss(*tensors, labels[:-1], temperature=2.0, kl_weight=1.0, mlm_weight=1.0)


def test_kept_memory_serves_other_sizes_and_dtypes_and_follows_an_evaluation():
    """The logits' memory stays between calls on a CPU.

    After other vocabularies, dtypes and inference mode, results must be those of fresh memory.
    """
    small, large = problem(6, 40, 8, 16), problem(20, 90, 8, 16, seed=1)
    release_workspace()
    fresh = run(*small)
    release_workspace()
    with torch.inference_mode():
        fused_linear_distillation_loss(*large[0], large[1], temperature=2.0, kl_weight=5.0, mlm_weight=2.0)
    for tensors, labels, mask in (large, small, problem(6, 40, 8, 16, dtype=torch.float64, seed=2), large):
        check(tensors, labels, mask, 1e-5)
    loss, kl, mlm, grads = run(*small)
    assert torch.equal(loss, fresh[0]) and torch.equal(kl, fresh[1]) and torch.equal(mlm, fresh[2])
    assert all(torch.equal(a, b) for a, b in zip(grads, fresh[3], strict=True))


def test_memory_stays_bounded_at_the_vocabulary_of_xlm_r():
    """Memory is gradients of the inputs' own size and a chunk's 240 MB.

    The logits of these 640 tokens alone would be 640 MB each.
    """
    rows, width, vocabulary = 640, 16, 250_002
    make = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(rows, width, generator=make, requires_grad=True),
        torch.randn(vocabulary, width, generator=make, requires_grad=True),
    )
    bias = torch.zeros(vocabulary, requires_grad=True)
    labels = torch.where(torch.arange(rows) % 7 == 0, torch.arange(rows), -100)

    def step(count=rows):
        loss, *_ = fused_linear_distillation_loss(
            hidden[:count],
            weight,
            bias,
            hidden[:count].detach() + 1,
            weight.detach(),
            None,
            labels[:count],
            temperature=2.0,
            kl_weight=1.0,
            mlm_weight=1.0,
        )
        loss.backward()

    step(16)  # lets the libraries allocate their own buffers
    assert peak_bytes(step, torch.device("cpu")) < 500e6
