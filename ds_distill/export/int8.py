"""The same graph with int8 matrices.

Activations are quantised too, while the model runs. One scale for a whole tensor, as ONNX Runtime's own quantizer has it, loses much: a few tokens'
outliers set the scale of all. Here each token has a scale of its own (Dettmers et al. 2022, section 2.1; Yao et al. 2022, section 4.2), each column of
a weight too, and the vocabulary matrix, which is embedding and projection at once, is kept once, a scale a token.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ds_distill.export.graph import silence

GELU_LEAST = 0.17  # Gelu(x) > -0.17: what it gives is shifted by this before it is quantised, so no code is spent on signs it hardly has
LARGE = 1_000_000  # values of a table that is looked up, from which it is worth its codes: vocabularies, not positions
GROUP = 384  # OpenVINO: a token's activations are scaled in groups of at most so many; 128 takes 1.2 times as long, 32 half as long again


def quantised(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """(int8 codes, fp32 scales along `axis`): symmetric, so that codes · scales is nearest to `weight` [rows, columns]."""
    scales = np.maximum(np.abs(weight).max(axis=1 - axis), 1e-12).astype(np.float32) / 127
    return np.rint(weight / np.expand_dims(scales, 1 - axis)).astype(np.int8), scales


def write_onnx_int8(graph: Path, file: Path) -> None:
    """`graph`, an fp32 ONNX file, with every product by a constant matrix, and every large table, in int8. Standard operators only."""
    import onnx_ir

    model = onnx_ir.load(graph)
    Rewriter(model.graph).run()
    onnx_ir.save(model, file)


class Rewriter:
    """One pass over an ONNX graph."""

    def __init__(self, graph):
        import onnx_ir

        self.ir, self.graph = onnx_ir, graph
        self.rows: dict = {}  # an activation → its codes and scales, shared by the products that read it
        self.tables: dict = {}  # a table → its codes and scales
        self.number = 0

    def run(self) -> None:
        for node in list(self.graph):
            if node.op_type == "MatMul" and (found := self.matrix_of(node.inputs[1])) is not None:
                self.product(node, *found)
        for node in list(self.graph):
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is not None and (table in self.tables or table.const_value is not None and table.const_value.size > LARGE):
                self.lookup(node, *self.codes_of(table))
        self.drop_unused()

    def matrix_of(self, value):
        """(codes [K, N], scales [N]) of a constant right-hand side, or of a table that is transposed; None for another value."""
        if value.const_value is not None and len(value.shape) == 2:
            codes, scales = quantised(value.const_value.numpy(), axis=1)
            return self.constant("matrix", codes), self.constant("scales", scales)
        producer = value.producer()
        if producer is not None and producer.op_type == "Transpose" and producer.inputs[0].const_value is not None:
            codes, scales = self.codes_of(producer.inputs[0])
            return self.add(producer, "Transpose", codes, perm=[1, 0]), scales
        return None

    def codes_of(self, table):
        """(codes [V, H], scales [V]) of a table, once."""
        if table not in self.tables:
            codes, scales = quantised(table.const_value.numpy(), axis=0)
            self.tables[table] = self.constant("table", codes), self.constant("table_scales", scales)
        return self.tables[table]

    def product(self, node, codes, scales) -> None:
        left, token_scales, zero, shift = self.quantised_rows(node.inputs[0], node)
        whole = self.add(node, "MatMulInteger", left, codes, zero)
        scaled = self.add(node, "Mul", self.add(node, "Cast", whole, to=self.ir.DataType.FLOAT), scales)
        result = self.add(node, "Mul", scaled, token_scales)
        if shift:  # taken off again: the same for all tokens
            column_sums = codes.const_value.numpy().astype(np.float32).sum(axis=0) * scales.const_value.numpy()
            result = self.add(node, "Add", result, self.constant("shift", (-shift * column_sums).astype(np.float32)))
        self.replace(node, result)

    def quantised_rows(self, value, before):
        """(codes uint8 [..., K], scales [..., 1], zero point, what was added to the values first)."""
        if value not in self.rows:
            producer = value.producer()
            shift = GELU_LEAST if producer is not None and producer.op_type == "Gelu" else 0.0
            levels, zero = (255.0, 0) if shift else (127.0, 128)
            shifted = self.add(before, "Add", value, self.constant("least", np.float32(shift))) if shift else value
            size = shifted if shift else self.add(before, "Abs", value)
            largest = self.add(before, "ReduceMax", size, self.constant("last", np.array([-1], np.int64)), keepdims=1)
            token_scales = self.add(before, "Mul", self.add(before, "Max", largest, self.constant("tiny", np.float32(1e-12))),
                                    self.constant("step", np.float32(1 / levels)))  # fmt: skip
            zero_point = self.constant("zero", np.uint8(zero))
            codes = self.add(before, "QuantizeLinear", self.add(before, "Div", shifted, token_scales), self.constant("one", np.float32(1)), zero_point)
            self.rows[value] = codes, token_scales, zero_point, shift
        return self.rows[value]

    def lookup(self, node, codes, scales) -> None:
        rows = self.add(node, "Cast", self.add(node, "Gather", codes, node.inputs[1], axis=0), to=self.ir.DataType.FLOAT)
        own = self.add(node, "Unsqueeze", self.add(node, "Gather", scales, node.inputs[1], axis=0), self.constant("last", np.array([-1], np.int64)))
        self.replace(node, self.add(node, "Mul", rows, own))

    def constant(self, name: str, array: np.ndarray):
        self.number += 1
        value = self.ir.Value(name=f"int8_{name}_{self.number}", const_value=self.ir.tensor(array))
        value.type, value.shape = self.ir.TensorType(value.const_value.dtype), self.ir.Shape(array.shape)
        value.const_value.name = value.name
        self.graph.register_initializer(value)
        return value

    def add(self, before, operator: str, *inputs, **attributes):
        """The output of a new node, which stands before the node `before`."""
        self.number += 1
        node = self.ir.node(operator, inputs=inputs, attributes=attributes or None)
        node.outputs[0].name = f"int8_{operator}_{self.number}"
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, node, value) -> None:
        old = node.outputs[0]
        for number, output in enumerate(self.graph.outputs):
            if output is old:
                value.name, value.shape, value.type = old.name, old.shape, old.type
                old.name = f"{old.name}_before"
                self.graph.outputs[number] = value
        self.ir.convenience.replace_all_uses_with(old, value)
        self.graph.remove(node, safe=True)

    def drop_unused(self) -> None:
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        RemoveUnusedNodesPass()(self.ir.Model(self.graph, ir_version=10))


def write_openvino_int8(graph: Path, file: Path, widths: tuple[int, int]) -> None:
    """OpenVINO's files (.xml and .bin): int8 weights, a scale a column; activations in int8, a scale for each group of a token's values.

    widths: of the products' rows, the hidden size and that between; a product whose rows a group does not divide would not be quantised.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(str(graph))
    with silence():
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    group = max(size for size in range(1, GROUP + 1) if math.gcd(*widths) % size == 0)
    model.set_rt_info(str(group), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    openvino.save_model(model, str(file), compress_to_fp16=False)
