"""Test that calibrated int8 files are nearer to the model than files whose weights are rounded to the nearest."""

import functools

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from ds_distill.cli import main
from ds_distill.compression.rounding import LARGEST, PAIR
from ds_distill.exporters.formats import CALIBRATION_TOKENS, _calibration_batches
from ds_distill.exporters.int8 import quantize, write_onnx_int8
from ds_distill.exporters.int8_calibration import Inputs, collect_inputs, round_with_feedback, smoothing_factors
from ds_distill.exporters.model import load_source
from ds_distill.exporters.onnx import OPSET, write_onnx
from ds_distill.exporters.parity import SAMPLE, count_tokens, text_batches, torch_runner
from ds_distill.exporters.runtimes import OnnxRunner
from tests.tiny import save_encoder
from tests.unit.exporters.test_int8 import largest_pair


def correlated_inputs(seed: int, tokens: int, width: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(tokens, width)) @ random.normal(size=(width, width))).astype(np.float32)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 1000), st.integers(16, 150), st.booleans())
def test_products_with_feedback_are_nearer(seed, width, paired):
    """Over many columns: each code is chosen once, so that of a single column of few rows the nearest may be better."""
    columns = 64
    x = correlated_inputs(seed, 3 * width, width)
    weight = np.random.default_rng(seed + 1).normal(size=(width, columns)).astype(np.float32)
    codes, scales = round_with_feedback(weight, (x.T @ x).astype(np.float64), paired=paired)
    nearest, same = quantize(np.ascontiguousarray(weight.T), paired=paired)
    assert codes.dtype == np.int8 and np.array_equal(scales, same)
    assert np.abs(codes.astype(int)).max() <= LARGEST and (not paired or largest_pair(codes.T) <= PAIR)
    errors = [np.square(x @ (each * scales - weight)).sum() for each in (codes, nearest.T)]
    assert errors[0] < 0.7 * errors[1]


def test_what_needs_no_rounding_stays():
    random = np.random.default_rng(0)
    codes = random.integers(-63, 64, size=(40, 6)).astype(np.int8)
    codes[:2] = [[127], [0]]
    x = correlated_inputs(1, 100, 40)
    x[:, 3] = 0  # an input that the text never has
    found, scales = round_with_feedback(codes * np.float32(0.5), (x.T @ x).astype(np.float64), paired=True)
    assert np.array_equal(found, codes) and np.allclose(scales, 0.5)


def test_factors_are_bounded_and_even_out_both_sides():
    random = np.random.default_rng(0)
    matrices = [random.normal(size=(8, 5)).astype(np.float32) for _ in range(2)]
    largest = np.array([0.0, 1e9, 1, 2, 4, 8, 16, 32], np.float32)
    factors = smoothing_factors(Inputs(largest, np.zeros((8, 8))), matrices)
    assert np.isfinite(factors).all() and factors.max() / np.median(factors) <= 32.01 > 1 / (factors.min() * 32.01)
    rows = np.max([np.abs(matrix).max(1) for matrix in matrices], axis=0)
    both = (largest / factors)[2:], (rows * factors)[2:]
    assert np.ptp(np.log(both[0] / both[1])) < 1e-5, "inputs and rows have one range"


def uneven_model(kind, folder, layers=2):
    """A random model some of whose hidden dimensions are much larger than the others, as those of trained ones are."""
    save_encoder("bert", folder)
    torch.manual_seed(0)
    model = kind.from_pretrained(folder, num_hidden_layers=layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter[::7] *= 12
            elif parameter.dim() == 2:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Return a function that returns (source, its fp32 graph) of a head, traced once."""

    @functools.cache
    def trace(kind):
        folder = tmp_path_factory.mktemp("uneven")
        layers = 2 if kind is AutoModelForMaskedLM else 1  # to trace a layer takes seconds
        source = load_source(str(uneven_model(kind, folder / "model", layers)))
        write_onnx(source, folder / "fp32.onnx")
        return source, folder / "fp32.onnx"

    return trace


@pytest.mark.parametrize("kind", [AutoModelForMaskedLM, AutoModelForSequenceClassification])
def test_a_calibrated_file_is_nearer_to_the_model(kind, traced, tmp_path):
    """Its one table serves lookups and the product of the vocabulary, and queries, keys and values read one input."""
    source, graph = traced(kind)
    batches = text_batches(source, [str(SAMPLE)], sequences=24)
    calibration = collect_inputs(graph, [batch.inputs for batch in batches[:2]], tmp_path)
    errors = []
    for number, given_calibration in enumerate((None, calibration)):
        file = tmp_path / f"{number}.onnx"
        write_onnx_int8(graph, file, paired=True, calibration=given_calibration)
        expected, found = (run(batches[2].inputs)[0] for run in (torch_runner(source), OnnxRunner(file)))
        real = np.ones(len(expected), bool) if expected.ndim == 2 else batches[2].inputs["attention_mask"] > 0
        errors.append(np.square(found[real] - expected[real]).mean() / expected[real].var())
    assert errors[1] < 0.6 * errors[0], errors


def write_products(file, weights, nodes):
    """Write a graph of x [B, L, K] with an output for each node whose name begins with y."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, inputs, [output]) for operator, inputs, output in nodes],
        "products",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", "sequence", len(weights["W"])])],
        [
            onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["batch", "sequence", None])
            for _, _, output in nodes
            if output.startswith("y")
        ],
        [onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), file)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([("MatMul", ["x", "V"], "z"), ("MatMul", ["z", "W"], "y")], id="factors of a linear layer"),
        pytest.param(
            [
                ("MatMul", ["x", "V"], "z"),
                ("MatMul", ["z", "W"], "y"),
                ("Relu", ["x"], "r"),
                ("MatMul", ["r", "W"], "y2"),
            ],
            id="a matrix that reads two activations",
        ),
        pytest.param(
            [
                ("MatMul", ["x", "W"], "y"),
                ("Transpose", ["W"], "T"),
                ("Relu", ["x"], "r"),
                ("MatMul", ["r", "T"], "y2"),
            ],
            id="a matrix and its transpose",
        ),
    ],
)
def test_each_product_is_fitted_to_what_it_reads(nodes, tmp_path):
    """Also where it reads another product, which is replaced before."""
    random, width = np.random.default_rng(0), 64
    weights = {name: random.normal(size=(width, width)).astype(np.float32) / 8 for name in "VW"}
    weights["V"][:, ::7] *= 20  # outliers of what the next product reads
    write_products(tmp_path / "fp32.onnx", weights, nodes)
    x, test = (random.normal(size=(1, 400, width)).astype(np.float32) for _ in range(2))
    x[..., ::5], test[..., ::5] = 15 * x[..., ::5], 15 * test[..., ::5]
    batches = [{"x": x, "attention_mask": np.ones(x.shape[:2], np.int64)}]
    calibration = collect_inputs(tmp_path / "fp32.onnx", batches, tmp_path)
    expected, errors = OnnxRunner(tmp_path / "fp32.onnx")({"x": test}), []
    for given_calibration in (None, calibration):
        write_onnx_int8(tmp_path / "fp32.onnx", tmp_path / "8.onnx", paired=True, calibration=given_calibration)
        found = OnnxRunner(tmp_path / "8.onnx")({"x": test})
        assert all(np.square(a - b).mean() < 1e-3 * b.var() for a, b in zip(found, expected, strict=True))
        errors.append(sum(np.square(a - b).sum() for a, b in zip(found, expected, strict=True)))
    assert errors[1] < 0.8 * errors[0], errors


def test_what_does_not_depend_on_the_text_counts_as_much_as_the_tokens(tmp_path):
    """However the text is divided into batches."""
    random, width = np.random.default_rng(0), 32
    weights = {"W": random.normal(size=(width, width)), "P": random.normal(size=(1, 6, width))}
    weights = {name: weight.astype(np.float32) for name, weight in weights.items()}
    nodes = [("Relu", ["P"], "p"), ("MatMul", ["p", "W"], "y"), ("MatMul", ["x", "W"], "y2")]
    write_products(tmp_path / "fp32.onnx", weights, nodes)
    x, grams = random.normal(size=(8, 6, width)).astype(np.float32), []
    for size in (1, 8):
        batches = [
            {"x": x[i : i + size], "attention_mask": np.tile([1, 1, 1, 1, 0, 0], (size, 1))} for i in range(0, 8, size)
        ]
        found = collect_inputs(tmp_path / "fp32.onnx", batches, tmp_path)
        grams.append({name: inputs.gram for name, inputs in found.items()})
    fixed = np.maximum(weights["P"][0], 0)
    for gram in grams:
        np.testing.assert_allclose(gram["p"], fixed.T @ fixed * (8 * 4) / 6, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(gram["x"], grams[0]["x"], rtol=1e-4, atol=1e-3)


def test_real_tokens_alone_count(traced, tmp_path):
    source, graph = traced(AutoModelForMaskedLM)
    (batch,) = text_batches(source, [str(SAMPLE)], sequences=3, length=24)
    padded = {name: np.pad(values, ((0, 0), (0, 5))) for name, values in batch.inputs.items()}
    short, long = (collect_inputs(graph, [inputs], tmp_path) for inputs in (batch.inputs, padded))
    assert short.keys() == long.keys() and len(short) >= 9
    for name, inputs in short.items():
        np.testing.assert_allclose(long[name].gram, inputs.gram, rtol=1e-3, atol=1e-3 * inputs.gram.max())


def test_many_short_texts_are_as_good_as_few_long_ones(traced, tmp_path):
    """Calibration counts tokens, not documents."""
    source, _ = traced(AutoModelForMaskedLM)
    words = SAMPLE.read_text().split()
    for length in (12, 60):
        (tmp_path / "a.txt").write_text("\n\n".join([" ".join(words[:length])] * 2000))
        assert 0 <= count_tokens(_calibration_batches(source, [str(tmp_path / "a.txt")])) - CALIBRATION_TOKENS < 64


def test_the_command_says_what_it_was_calibrated_on(traced, reuse_graph, tmp_path, capsys):
    folder = uneven_model(AutoModelForMaskedLM, tmp_path / "model")
    reuse_graph(traced(AutoModelForMaskedLM)[1])  # of the same model
    lines = [line for line in SAMPLE.read_text().splitlines() if line]
    for name, part in (("a.txt", lines[::2]), ("b.txt", lines[1::2])):
        (tmp_path / name).write_text("\n\n".join(part))
    words = ["export", "--model", folder, "--output", tmp_path / "out", "--text", tmp_path / "a.txt", "--calibrate"]
    assert main([*map(str, words), str(tmp_path / "b.txt"), "--format", "onnx-int8", "onnx"]) == 0
    assert "| b.txt" in capsys.readouterr().out
    (tmp_path / "short.txt").write_text("a text with enough words in it to be read , and a few more .")
    assert main([*map(str, words), str(tmp_path / "short.txt"), "--format", "onnx-int8"]) == 2
    assert "tokens are too few for products of 64 inputs; give at least 64 tokens" in capsys.readouterr().err
    assert main([*map(str, words), str(tmp_path / "b.txt"), "--format", "onnx"]) == 2
    assert "--calibrate" in (said := capsys.readouterr().err) and "is read for onnx-int8 and onnx-int8-vnni" in said
