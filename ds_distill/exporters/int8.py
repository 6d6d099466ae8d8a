"""Quantization of an exported graph's matrices to int8.

Activations are quantized too, while the model runs. ONNX Runtime's own quantizer uses one scale for
a whole tensor and loses much accuracy, because outliers of a few tokens set the scale of all. Here
each token has a range of its own (Dettmers et al. 2022, section 2.1; Yao et al. 2022, section 4.2),
and each column of a weight has its own scale. The vocabulary matrix serves as embedding and as
projection. It is stored once, with one scale per token.

`compression.rounding` says how large codes may be for the sums to be right on every processor. A file for processors
with VNNI, or ARM's counterpart, need not be `paired`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds_distill.compression.rounding import LARGE, LARGEST, activation_group, row_scales
from ds_distill.exporters.int8_calibration import (
    Inputs,
    find_weight,
    round_with_feedback,
    smoothing_factors,
)
from ds_distill.exporters.onnx import save_graph, silence
from ds_distill.exporters.onnx_editor import OnnxEditor


def quantize(weight: np.ndarray, *, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (int8 codes [rows, columns], fp32 scales [rows]), codes · scales nearest to `weight`.

    Args:
        weight: [rows, columns]; a product sums over the columns.
        paired: Whether neighbors must fit together, see `compression.rounding`.
    """
    scales = row_scales(torch.tensor(weight), paired=paired).numpy()
    return np.rint(weight / scales).astype(np.int8), scales[:, 0]


def write_onnx_int8(graph: Path, file: Path, *, paired: bool, calibration: Mapping[str, Inputs] | None = None) -> None:
    """Write the fp32 ONNX file `graph` with int8 for every MatMul by a constant matrix and for every large table.

    The result uses standard operators only.

    Args:
        graph: The file to read.
        file: The file to write.
        paired: Whether it is right on every processor, see `compression.rounding`.
        calibration: What `int8_calibration.collect_inputs` has returned of this file; without it, every weight is
            rounded to the nearest.
    """
    import onnx_ir

    model = onnx_ir.load(graph)
    OnnxQuantizer(model.graph, calibration or {}, paired=paired).run()
    save_graph(model, file)


@functools.cache
def full_range_unavailable_reason() -> str | None:
    """Return why ONNX Runtime cannot run a file that is not paired on this processor, or None.

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
        None, {"rows": np.full((64, 64), 255, np.uint8), "matrix": np.full((64, 64), LARGEST, np.int8)}
    )[0]
    if (product_values == 64 * 255 * LARGEST).all():
        return None
    return "this processor has no VNNI and adds products of bytes in 16 bits, which saturates"


class OnnxQuantizer(OnnxEditor):
    """Quantizes an ONNX graph in one pass."""

    def __init__(self, graph, calibration: Mapping[str, Inputs], *, paired: bool):
        super().__init__(graph, "int8")
        self.calibration, self.paired = calibration, paired
        # an activation → its codes, steps and least values, shared by the products that read it
        self.rows: dict = {}
        # what `find_weight` returns of a product → the codes, scales and sums of its matrix, which layers may share
        self.matrices: dict = {}
        self.tables: dict = {}  # a table → its codes and scales
        self.factors: dict = {}  # an activation, or a table → what divides it, and multiplies the other side
        self.inputs: dict = {}  # the same → what its products have read

    def run(self) -> None:
        products = [node for node in self.graph if find_weight(node) is not None]
        self.smooth(products)
        for node in products:
            self.product(node)
        for node in list(self.graph):
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is not None and (
                table in self.tables or table.const_value is not None and table.const_value.size > LARGE
            ):
                # a table that a product reads too has its codes already
                if table not in self.tables:
                    self.tables[table] = self.constants_of_rows(*quantize(table.const_value.numpy(), paired=False))
                self.lookup(node, table)
        self.drop_unused()

    def smooth(self, products) -> None:
        """Find the factors of the activations that were calibrated."""
        for nodes in joined_products(products):
            if not all(node.inputs[0].name in self.calibration for node in nodes):
                continue
            weights, values = dict[Any, list](), dict[Any, Inputs]()
            for node in nodes:
                values[node.inputs[0]] = self.calibration[node.inputs[0].name]
                weights.setdefault(find_weight(node), []).append(node)
            matrices = [get_matrix(readers[0]) for readers in weights.values()]
            self.factors |= dict.fromkeys(values, smoothing_factors(Inputs.total(values.values()), matrices))
            for weight, readers in weights.items():
                self.inputs[weight] = Inputs.total(values[node.inputs[0]] for node in readers)

    def round(self, node) -> tuple[np.ndarray, np.ndarray]:
        """Return (codes [K, N], scales [N]) of the matrix of a product.

        A table for lookups is rounded to the nearest: feedback moves its rows farther from what is looked up.
        """
        matrix, weight = get_matrix(node), find_weight(node)
        factors = self.factors.get(node.inputs[0], np.ones(len(matrix), np.float32))
        _, is_table = weight
        if is_table or weight not in self.inputs:
            codes, scales = quantize((matrix * factors[:, None]).T, paired=self.paired)
            return np.ascontiguousarray(codes.T), scales
        gram = self.inputs[weight].gram / np.outer(factors, factors).astype(np.float64)
        return round_with_feedback(matrix * factors[:, None], gram, paired=self.paired)

    def constants_of_rows(self, codes: np.ndarray, scales: np.ndarray):
        """Return (codes [V, H], scales [V]) of a table as constants."""
        return self.constant("table", codes), self.constant("table_scales", scales)

    def matrix(self, node):
        """Return (codes [K, N], scales [N], column sums [N]) of the matrix of a product, which is stored once."""
        weight = table, is_table = find_weight(node)
        if weight not in self.matrices:
            codes, scales = self.round(node)
            sums = self.constant("sums", codes.sum(axis=0, dtype=np.float32) * scales)
            if is_table:
                self.tables[table] = rows, columns = self.constants_of_rows(np.ascontiguousarray(codes.T), scales)
                if node.inputs[0] in self.factors:
                    self.factors[table] = self.factors[node.inputs[0]]
                matrix = self.add(node.inputs[1].producer(), "Transpose", rows, perm=[1, 0])
            else:
                matrix, columns = self.constant("matrix", codes), self.constant("scales", scales)
            self.matrices[weight] = matrix, columns, sums
        return self.matrices[weight]

    def product(self, node) -> None:
        """Replace a product: x W = step · (codes of x) (codes of W) · scales + least · (column sums of W)."""
        matrix, scales, sums = self.matrix(node)
        left, step, least = self.quantize_rows(node.inputs[0], node)
        whole = self.add(node, "Cast", self.add(node, "MatMulInteger", left, matrix), to=self.ir.DataType.FLOAT)
        scaled = self.add(node, "Mul", self.add(node, "Mul", whole, scales), step)
        self.replace(node, self.add(node, "Add", scaled, self.add(node, "Mul", least, sums)))

    def replace(self, node, value) -> None:
        """Have `value` take the place of the output of `node`; its factors are those of that output."""
        if node.outputs[0] in self.factors:
            self.factors[value] = self.factors.pop(node.outputs[0])
        super().replace(node, value)

    def divide(self, value, by, before):
        """Return a value divided by the factors of `by`, if it has any."""
        if by not in self.factors:
            return value
        return self.add(before, "Mul", value, self.constant("factors", 1 / self.factors[by]))

    def quantize_rows(self, value, before):
        """Return (codes [..., K] from 0 to 255, step [..., 1], least [..., 1]): value = step · codes + least.

        Step and least differ from token to token. Where the value has factors, this is of the value divided by them.
        """
        if value not in self.rows:
            source = self.divide(value, value, before)
            last = self.constant("last", np.array([-1], np.int64))
            least, most = (
                self.add(before, operator, source, last, keepdims=1) for operator in ("ReduceMin", "ReduceMax")
            )
            width = self.add(
                before, "Max", self.add(before, "Sub", most, least), self.constant("tiny", np.float32(1e-12))
            )
            step = self.add(before, "Mul", width, self.constant("steps", np.float32(1 / 255)))
            counted = self.add(before, "Div", self.add(before, "Sub", source, least), step)
            codes = self.add(
                before,
                "QuantizeLinear",
                counted,
                self.constant("one", np.float32(1)),
                self.constant("zero", np.uint8(0)),
            )
            self.rows[value] = codes, step, least
        return self.rows[value]

    def lookup(self, node, table) -> None:
        codes, scales = self.tables[table]
        rows = self.add(
            node, "Cast", self.add(node, "Gather", codes, node.inputs[1], axis=0), to=self.ir.DataType.FLOAT
        )
        row_scales = self.add(
            node,
            "Unsqueeze",
            self.add(node, "Gather", scales, node.inputs[1], axis=0),
            self.constant("last", np.array([-1], np.int64)),
        )
        self.replace(node, self.divide(self.add(node, "Mul", rows, row_scales), table, node))


def joined_products(products) -> list[list]:
    """Return the products in groups, each of those that have an activation or a weight in common.

    One activation may be read by several matrices, such as those of queries, keys and values, and one matrix may read
    several activations, where layers share it.
    """
    groups: list[list] = []
    for node in products:
        ends = {node.inputs[0], find_weight(node)}
        touching = [group for group in groups if any({other.inputs[0], find_weight(other)} & ends for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([*(other for group in touching for other in group), node])
    return groups


def get_matrix(node) -> np.ndarray:
    """Return the constant [K, N] that a product multiplies by."""
    weight, transposed = find_weight(node)
    return weight.const_value.numpy().T if transposed else weight.const_value.numpy()


def write_openvino_int8(graph: Path, file: Path, widths: tuple[int, ...]) -> None:
    """Write OpenVINO's files (.xml and .bin) with int8 weights, one scale per column.

    Activations are int8 too, with one scale for each group of a token's values.

    Args:
        graph: The fp32 ONNX file.
        file: The .xml file to write.
        widths: The row lengths of the products, such as the hidden size and the feed-forward size.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(str(graph))
    with silence():
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    model.set_rt_info(str(activation_group(widths)), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    openvino.save_model(model, str(file), compress_to_fp16=False)
