"""Test four bits: the codes of a weight, what ONNX Runtime and OpenVINO make of them, and what a file holds."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.compression.rounding import GROUP, quantize_groups, round_groups
from ds_distill.exporters.int4 import pack, write_onnx_int4, write_openvino_int4
from ds_distill.exporters.onnx import OPSET
from ds_distill.exporters.runtimes import OnnxRunner, OpenvinoRunner


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 100), st.floats(1e-5, 1e3), st.floats(-3, 3))
def test_codes_are_the_nearest_of_each_group(rows, columns, scale, shift):
    values = np.random.default_rng(rows * 101 + columns).normal(shift, size=(rows, columns)) * scale
    weight = torch.tensor(values, dtype=torch.float32)
    groups = quantize_groups(weight)
    for codes, most in ((groups.codes, 15), (groups.zeros, 15), (groups.scales, 255)):
        assert codes.dtype == torch.uint8 and codes.max() <= most
    assert groups.scales.min() >= 1
    mantissas, _ = torch.frexp(groups.steps)
    assert (mantissas == 0.5).all() and torch.equal(groups.steps, groups.steps.half().float()), "powers of two in fp16"
    scales = groups.scales * groups.steps
    assert torch.equal(scales, scales.half().float())
    padded = torch.nn.functional.pad(weight, (0, -columns % GROUP)).view(rows, -1, GROUP)
    choices = (torch.arange(16) - groups.zeros.unsqueeze(-1)) * scales.unsqueeze(-1)  # [rows, groups, 16]
    off = (padded.unsqueeze(-1) - choices.unsqueeze(2)).abs()
    chosen = off.gather(-1, groups.codes.long().unsqueeze(-1)).squeeze(-1)
    assert (chosen <= off.amin(-1) + 1e-4 * scales.unsqueeze(-1)).all()
    # the zero point is rounded too, so one of the ends may be half a step farther off
    assert (chosen <= 1.001 * scales.unsqueeze(-1)).all()
    width = padded.amax(-1).clamp_min(0) - padded.amin(-1).clamp_max(0)
    largest = width.amax(-1, keepdim=True)
    assert (scales <= width / 15 + largest / 15 / 127 + 2**-24).all(), "as fine as a byte of the largest allows"


def test_zeros_and_lonely_values_are_exact():
    weight = torch.zeros(3, 70)
    weight[1, 5], weight[2, 69] = 4.0, -0.25
    values = round_groups(weight)
    assert not values[0].any() and torch.equal(values != 0, weight != 0)
    torch.testing.assert_close(values, weight, rtol=0.01, atol=0)
    assert torch.equal(round_groups(values), values), "what is rounded stays"


def test_two_codes_are_in_a_byte():
    codes = torch.tensor([[1, 2, 15], [4, 0, 3]], dtype=torch.uint8)
    assert pack(codes).tolist() == [[0x21, 0x0F], [0x04, 0x03]]


def lookup_and_product(weight: np.ndarray, kind: str):
    """Return an ONNX model that looks rows of a table up and multiplies by it, as a tied vocabulary is used."""
    rows, width = weight.shape
    table = onnx.numpy_helper.from_array(weight, "table")
    make = onnx.helper.make_node
    product = {
        "tied": [make("Transpose", ["table"], ["turned"], perm=[1, 0]), make("MatMul", ["x", "turned"], ["y"])],
        "gemm": [make("Gemm", ["flat", "table", "bias"], ["product"], transB=1)],
    }[kind]
    if kind == "gemm":
        product = [make("Squeeze", ["x", "first"], ["flat"]), *product, make("Unsqueeze", ["product", "first"], ["y"])]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [make("Gather", ["table", "ids"], ["found"]), *product],
        "tied",
        [
            info("x", onnx.TensorProto.FLOAT, [1, "rows", width]),
            info("ids", onnx.TensorProto.INT64, ["batch", "sequence"]),
        ],
        [
            info("found", onnx.TensorProto.FLOAT, ["batch", "sequence", width]),
            info("y", onnx.TensorProto.FLOAT, [1, "rows", rows]),
        ],
        [
            table,
            onnx.numpy_helper.from_array(np.array([0], np.int64), "first"),
            onnx.numpy_helper.from_array(np.linspace(-1, 1, rows, dtype=np.float32), "bias"),
        ],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)


@pytest.mark.parametrize("kind", ["tied", "gemm"])
@pytest.mark.parametrize("width", [64, 96, 40])  # an even and an odd number of groups, and a group that is filled up
def test_the_runtimes_compute_with_what_the_codes_stand_for(width, kind, tmp_path):
    random = np.random.default_rng(width)
    weight = (random.normal(size=(250, width)) * random.uniform(0.01, 5, (1, width))).astype(np.float32)
    onnx.save(lookup_and_product(weight, kind), tmp_path / "fp32.onnx")
    inputs = {"x": random.normal(size=(1, 5, width)).astype(np.float32), "ids": random.integers(0, len(weight), (2, 7))}
    rounded = round_groups(torch.from_numpy(weight)).numpy()
    bias = np.linspace(-1, 1, len(weight), dtype=np.float32) if kind == "gemm" else 0
    write_onnx_int4(tmp_path / "fp32.onnx", tmp_path / "int4.onnx")
    write_openvino_int4(tmp_path / "fp32.onnx", tmp_path / "int4.xml")
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "int4.onnx", plain, providers=["CPUExecutionProvider"])
    runs = {
        "ONNX Runtime": OnnxRunner(tmp_path / "int4.onnx"),
        "constants not folded": lambda inputs: session.run(None, inputs),
        "OpenVINO": OpenvinoRunner(tmp_path / "int4.xml"),
    }
    for name, run in runs.items():
        found, product = run(inputs)
        np.testing.assert_allclose(found, rounded[inputs["ids"]], rtol=1e-6, err_msg=name)
        expected = inputs["x"] @ rounded.T + bias
        np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    held = {entry.name: np.prod(entry.dims) for entry in onnx.load(tmp_path / "int4.onnx").graph.initializer}
    assert sum(size for name, size in held.items() if "codes" in name) == rounded.shape[0] * -(-width // GROUP) * 16
    assert "table" not in held, "the table is stored once, for both"
