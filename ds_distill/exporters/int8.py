"""Quantization of an exported graph's matrices to int8.

Activations are quantized too, while the model runs. ONNX Runtime's own quantizer uses one scale for
a whole tensor and loses much accuracy, because outliers of a few tokens set the scale of all. Here
each token has a range of its own (Dettmers et al. 2022, section 2.1; Yao et al. 2022, section 4.2),
and each column of a weight has its own scale. The vocabulary matrix serves as embedding and as
projection. It is stored once, with one scale per token.

Without VNNI (vpdpbusd), x86 adds pairs of products in 16 bits (vpmaddubsw). 2 · 255 · 127 does not
fit into them, and the sum is silently saturated. 2 · 255 · 63 fits. A file that must be right
everywhere therefore has REDUCED_RANGE steps in each direction for its weights. A file for processors with
VNNI, or ARM's counterpart, has FULL_RANGE.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np

from ds_distill.compression.rounding import FULL_RANGE, LARGE, REDUCED_RANGE, SMALLEST
from ds_distill.exporters.onnx import save_graph, silence
from ds_distill.exporters.onnx_editor import OnnxEditor

# OpenVINO scales a token's activations in groups of at most this size; 128 takes 1.2 times as long,
# 32 half as long again.
GROUP = 384


def quantize(weight: np.ndarray, axis: int, steps: int = FULL_RANGE) -> tuple[np.ndarray, np.ndarray]:
    """Return (int8 codes from -steps to steps, fp32 scales along `axis`), codes · scales nearest to `weight`.

    Args:
        weight: [rows, columns].
        axis: The axis that the scales belong to.
        steps: The largest code.
    """
    scales = np.maximum(np.abs(weight).max(axis=1 - axis), SMALLEST).astype(np.float32) / steps
    return np.rint(weight / np.expand_dims(scales, 1 - axis)).astype(np.int8), scales


def write_onnx_int8(graph: Path, file: Path, steps: int = REDUCED_RANGE) -> None:
    """Write the fp32 ONNX file `graph` with int8 for every MatMul by a constant matrix and for every large table.

    The result uses standard operators only.

    Args:
        graph: The file to read.
        file: The file to write.
        steps: FULL_RANGE or REDUCED_RANGE, for the weights.
    """
    import onnx_ir

    model = onnx_ir.load(graph)
    OnnxQuantizer(model.graph, steps).run()
    save_graph(model, file)


@functools.cache
def full_range_unavailable_reason() -> str | None:
    """Return why ONNX Runtime cannot run a file of FULL_RANGE steps on this processor, or None.

    It is asked for a product whose sums do not fit 16 bits.
    """
    import onnx_ir
    import onnxruntime

    rows, matrix, sums = (onnx_ir.Value(name=name) for name in ("rows", "matrix", "whole"))
    for value, kind in (
        (rows, onnx_ir.DataType.UINT8),
        (matrix, onnx_ir.DataType.INT8),
        (sums, onnx_ir.DataType.INT32),
    ):
        value.type, value.shape = onnx_ir.TensorType(kind), onnx_ir.Shape((64, 64))
    product = onnx_ir.node("MatMulInteger", inputs=(rows, matrix), outputs=(sums,))
    graph = onnx_ir.Graph((rows, matrix), (sums,), nodes=(product,), opset_imports={"": 20}, name="product")
    proto = onnx_ir.to_proto(onnx_ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    product_values = session.run(
        None, {"rows": np.full((64, 64), 255, np.uint8), "matrix": np.full((64, 64), FULL_RANGE, np.int8)}
    )[0]
    if (product_values == 64 * 255 * FULL_RANGE).all():
        return None
    return "this processor has no VNNI and adds products of bytes in 16 bits, which saturates"


class OnnxQuantizer(OnnxEditor):
    """Quantizes an ONNX graph in one pass."""

    def __init__(self, graph, steps: int):
        super().__init__(graph, "int8")
        self.steps = steps
        # an activation → its codes, steps and least values, shared by the products that read it
        self.rows: dict = {}
        self.tables: dict = {}  # a table → its codes and scales

    def run(self) -> None:
        for node in list(self.graph):
            if node.op_type == "MatMul" and (quantized := self.get_matrix(node.inputs[1])) is not None:
                self.product(node, *quantized)
        for node in list(self.graph):
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is not None and (
                table in self.tables or table.const_value is not None and table.const_value.size > LARGE
            ):
                # a table that a product reads too has its codes already
                self.lookup(node, *self.get_codes(table, FULL_RANGE))
        self.drop_unused()

    def get_matrix(self, value):
        """Return (codes [K, N], scales [N], column sums [N]) of a constant or a transposed table, None for others."""
        if value.const_value is not None and len(value.shape) == 2:
            codes, scales = quantize(value.const_value.numpy(), axis=1, steps=self.steps)
            return (
                self.constant("matrix", codes),
                self.constant("scales", scales),
                self.constant("sums", codes.sum(axis=0, dtype=np.float32) * scales),
            )
        producer = value.producer()
        if producer is not None and producer.op_type == "Transpose" and producer.inputs[0].const_value is not None:
            codes, scales = self.get_codes(producer.inputs[0], self.steps)
            sums = codes.const_value.numpy().sum(axis=1, dtype=np.float32) * scales.const_value.numpy()
            return self.add(producer, "Transpose", codes, perm=[1, 0]), scales, self.constant("sums", sums)
        return None

    def get_codes(self, table, steps: int):
        """Return (codes [V, H], scales [V]) of a table, computed once."""
        if table not in self.tables:
            codes, scales = quantize(table.const_value.numpy(), axis=0, steps=steps)
            self.tables[table] = self.constant("table", codes), self.constant("table_scales", scales)
        return self.tables[table]

    def product(self, node, codes, scales, sums) -> None:
        """Replace a product: x W = step · (codes of x) (codes of W) · scales + least · (column sums of W)."""
        left, step, least = self.quantize_rows(node.inputs[0], node)
        whole = self.add(node, "Cast", self.add(node, "MatMulInteger", left, codes), to=self.ir.DataType.FLOAT)
        scaled = self.add(node, "Mul", self.add(node, "Mul", whole, scales), step)
        self.replace(node, self.add(node, "Add", scaled, self.add(node, "Mul", least, sums)))

    def quantize_rows(self, value, before):
        """Return (codes [..., K] from 0 to 255, step [..., 1], least [..., 1]): value = step · codes + least.

        Step and least differ from token to token.
        """
        if value not in self.rows:
            last = self.constant("last", np.array([-1], np.int64))
            least, most = (
                self.add(before, operator, value, last, keepdims=1) for operator in ("ReduceMin", "ReduceMax")
            )
            width = self.add(
                before, "Max", self.add(before, "Sub", most, least), self.constant("tiny", np.float32(1e-12))
            )
            step = self.add(before, "Mul", width, self.constant("steps", np.float32(1 / 255)))
            counted = self.add(before, "Div", self.add(before, "Sub", value, least), step)
            codes = self.add(
                before,
                "QuantizeLinear",
                counted,
                self.constant("one", np.float32(1)),
                self.constant("zero", np.uint8(0)),
            )
            self.rows[value] = codes, step, least
        return self.rows[value]

    def lookup(self, node, codes, scales) -> None:
        rows = self.add(
            node, "Cast", self.add(node, "Gather", codes, node.inputs[1], axis=0), to=self.ir.DataType.FLOAT
        )
        row_scales = self.add(
            node,
            "Unsqueeze",
            self.add(node, "Gather", scales, node.inputs[1], axis=0),
            self.constant("last", np.array([-1], np.int64)),
        )
        self.replace(node, self.add(node, "Mul", rows, row_scales))


def write_openvino_int8(graph: Path, file: Path, widths: tuple[int, ...]) -> None:
    """Write OpenVINO's files (.xml and .bin) with int8 weights, one scale per column.

    Activations are int8 too, with one scale for each group of a token's values.

    Args:
        graph: The fp32 ONNX file.
        file: The .xml file to write.
        widths: The row lengths of the products, such as the hidden size and the feed-forward size.
            A product whose rows a group does not divide would not be quantized.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(str(graph))
    with silence():
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    group = max(size for size in range(1, GROUP + 1) if math.gcd(*widths) % size == 0)
    model.set_rt_info(str(group), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    openvino.save_model(model, str(file), compress_to_fp16=False)
