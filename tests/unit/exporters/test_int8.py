"""Test eight bits: the codes of a weight, and the sums of their products."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.compression.rounding import FULL_RANGE, REDUCED_RANGE
from ds_distill.exporters.int8 import full_range_unavailable_reason, quantize, write_onnx_int8
from ds_distill.exporters.onnx import OPSET
from ds_distill.exporters.runtimes import OnnxRunner


@pytest.mark.parametrize("steps", [FULL_RANGE, REDUCED_RANGE])
def test_sums_of_products_are_right_or_said_to_be_wrong(tmp_path, steps):
    """All weights are equal and activations are largest, where a processor that adds in 16 bits saturates."""
    weight = onnx.numpy_helper.from_array(np.ones((64, 8), np.float32), "weight")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", width])
        for name, width in (("x", 64), ("y", 8))
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])], "product", ends[:1], ends[1:], [weight]
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10),
        tmp_path / "fp32.onnx",
    )
    write_onnx_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", steps)
    x = np.ones((3, 64), np.float32)
    x[:, ::7] = -2
    actual, expected = OnnxRunner(tmp_path / "int8.onnx")({"x": x})[0], x.sum(axis=1, keepdims=True).repeat(8, axis=1)
    right = np.allclose(actual, expected, rtol=1e-4, atol=1e-3)
    assert right == (steps == REDUCED_RANGE or full_range_unavailable_reason() is None), actual[0, 0]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 1),
    st.floats(1e-6, 1e6),
    st.sampled_from([FULL_RANGE, REDUCED_RANGE]),
)
def test_codes_are_the_nearest(rows, columns, axis, scale, steps):
    weight = (np.random.default_rng(rows * 41 + columns).normal(size=(rows, columns)) * scale).astype(np.float32)
    codes, scales = quantize(weight, axis, steps)
    assert codes.dtype == np.int8 and scales.shape == (weight.shape[axis],) and np.abs(codes.astype(int)).max() <= steps
    expanded = np.expand_dims(scales, 1 - axis)
    assert (np.abs(codes * expanded - weight) <= expanded * 0.5001 + 1e-12).all()
