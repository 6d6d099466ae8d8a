"""Test eight bits: the codes of a weight, and the sums of their products."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.compression.rounding import LARGEST, PAIR
from ds_distill.exporters.int8 import full_range_unavailable_reason, quantize, write_onnx_int8
from ds_distill.exporters.onnx import OPSET
from ds_distill.exporters.runtimes import OnnxRunner


@pytest.mark.parametrize("paired", [False, True])
def test_sums_of_products_are_right_or_said_to_be_wrong(tmp_path, paired):
    """Weights are large and so are most activations, where a processor that adds in 16 bits saturates."""
    values = np.tile(np.array([[64], [63]], np.float32), (32, 8))
    weight = onnx.numpy_helper.from_array(values, "weight")
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
    write_onnx_int8(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", paired=paired)
    x = np.ones((3, 64), np.float32)
    x[:, ::7] = -2
    actual = OnnxRunner(tmp_path / "int8.onnx")({"x": x})[0]
    right = np.allclose(actual, x @ values, rtol=1e-4, atol=1e-3)
    assert right == (paired or full_range_unavailable_reason() is None), actual[0, 0]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(1e-6, 1e6), st.floats(-2, 2), st.booleans())
def test_codes_are_the_nearest_and_fit(rows, columns, scale, mean, paired):
    weight = np.random.default_rng(rows * 41 + columns).normal(mean, size=(rows, columns)) * scale
    weight = weight.astype(np.float32)
    codes, scales = quantize(weight, paired=paired)
    assert codes.dtype == np.int8 and scales.shape == (rows,)
    assert (np.abs(codes * scales[:, None] - weight) <= scales[:, None] * 0.5001 + 1e-12).all()
    assert np.abs(codes.astype(int)).max() <= LARGEST and (not paired or largest_pair(codes) <= PAIR)


def largest_pair(codes):
    """The largest sum of two neighbors of one sign: what 255 is multiplied by before a sum in 16 bits."""
    pairs = np.pad(codes.astype(int), ((0, 0), (0, codes.shape[1] % 2))).reshape(len(codes), -1, 2)
    return np.abs(pairs.sum(2)[np.sign(pairs).prod(2) > 0]).max(initial=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_the_largest_sums_are_right_on_this_processor(inputs, outputs, rows, as_table):
    """Each pair of neighbors is as large as a paired file may have it, and so are the codes of what they multiply."""
    random = np.random.default_rng(inputs * 71 + outputs)
    codes = random.integers(-LARGEST, LARGEST + 1, (outputs, inputs))
    first, second = codes[:, : inputs - inputs % 2 : 2], codes[:, 1::2]
    together = np.where(random.random(second.shape) < 0.8, np.sign(first), 0) * PAIR
    second[:] = np.clip(together - first, -LARGEST, LARGEST)
    assert largest_pair(codes) <= PAIR
    x = random.choice(np.array([0, 254, 255], np.uint8), (rows, inputs))
    x[0] = 255
    assert np.array_equal(integer_product(codes.astype(np.int8), as_table)(x), x.astype(int) @ codes.T)


def integer_product(codes, as_table):
    """Run x C^T as int8 files do: by a matrix, or by the transpose of a table."""
    constants = [onnx.numpy_helper.from_array(codes if as_table else np.ascontiguousarray(codes.T), "codes")]
    turned = [onnx.helper.make_node("Transpose", ["codes"], ["matrix"], perm=[1, 0])] if as_table else []
    product = onnx.helper.make_node("MatMulInteger", ["x", "matrix" if as_table else "codes"], ["y"])
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ["rows", codes.shape[1]])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, ["rows", len(codes)])
    graph = onnx.helper.make_graph([*turned, product], "product", [given], [result], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]
