"""Quantization of an exported graph's matrices and tables to four bits, in groups of 32 values.

Weights alone are rounded, and smaller tables, such as positions, to fp16: four bits of them cost as much accuracy as
those of a layer, and save little. Both runtimes multiply with what the codes stand for in fp32, so the answers do not
depend on the processor. The vocabulary matrix is stored once, for lookups and for the product.

ONNX Runtime has operators of its own for this (domain com.microsoft): MatMulNBits and GatherBlockQuantized. Its
products may also round activations to int8 (accuracy level 4). That is faster for single tokens only, adds an error,
and silently returns wrong numbers where constants are not folded. Level 1 is asked for: fp32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ds_distill.compression.rounding import GROUP, LARGE, Groups, quantize_groups
from ds_distill.exporters.onnx import save_graph
from ds_distill.exporters.onnx_editor import OnnxEditor

DOMAIN = "com.microsoft"
FP32 = 1  # accuracy level of MatMulNBits


def pack(codes: torch.Tensor) -> np.ndarray:
    """Return codes from 0 to 15, uint8 [..., n], two in a byte [..., (n + 1) // 2], the first in the low bits."""
    even = torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2))
    return (even[..., ::2] | even[..., 1::2] << 4).numpy()


def write_onnx_int4(graph: Path, file: Path) -> None:
    """Write the fp32 ONNX file `graph` with four bits for products by constant matrices and for large lookup tables.

    Matrices of fewer than GROUP outputs, such as a classifier's, stay as they are, and smaller tables are fp16.
    """
    import onnx_ir

    model = onnx_ir.load(graph)
    model.graph.opset_imports[DOMAIN] = 1
    GroupQuantizer(model.graph).run()
    save_graph(model, file)


class GroupQuantizer(OnnxEditor):
    """Quantizes an ONNX graph in one pass."""

    def __init__(self, graph):
        super().__init__(graph, "int4")
        # a weight and whether its rows are outputs → its codes, scales, zeros and steps
        self.weights: dict = {}

    def run(self) -> None:
        for node in list(self.graph):
            if (found := find_product(node)) is not None:
                self.product(node, *found)
        for node in list(self.graph):
            if (table := find_table(node)) is not None:
                if (table, False) in self.weights or table.const_value.size > LARGE:
                    self.lookup(node, table)
                else:
                    self.half_lookup(node, table)
        self.drop_unused()

    def get_weight(self, weight, transpose: bool):
        """Return (codes, scales, zeros) of a constant, stored once; scales are computed when the file is loaded."""
        if (weight, transpose) not in self.weights:
            groups = quantize_rows(weight.const_value.numpy(), transpose)
            first = self.graph[0]
            scales = self.add(first, "Cast", self.constant("scales", groups.scales.numpy()), to=self.ir.DataType.FLOAT)
            steps = self.constant("steps", groups.steps.numpy().astype(np.float16))
            self.weights[weight, transpose] = (
                self.constant("codes", pack(groups.codes)),
                self.add(first, "Mul", scales, self.add(first, "Cast", steps, to=self.ir.DataType.FLOAT)),
                self.constant("zeros", pack(groups.zeros)),
            )
        return self.weights[weight, transpose]

    def product(self, node, weight, transpose: bool, bias) -> None:
        outputs, columns = weight.shape[::-1] if transpose else weight.shape
        inputs = node.inputs[0], *self.get_weight(weight, transpose)
        sizes = {"K": int(columns), "N": int(outputs), "bits": 4, "block_size": GROUP, "accuracy_level": FP32}
        product = self.add(node, "MatMulNBits", *inputs, domain=DOMAIN, **sizes)
        self.replace(node, product if bias is None else self.add(node, "Add", product, bias))

    def lookup(self, node, table) -> None:
        codes, scales, zeros = self.get_weight(table, False)
        rows, groups, half = codes.shape
        flat = self.add(node, "Reshape", codes, self.constant("rows", np.array([rows, groups * half], np.int64)))
        sizes = {"bits": 4, "block_size": GROUP, "gather_axis": 0, "quantize_axis": 1}
        found = self.add(node, "GatherBlockQuantized", flat, node.inputs[1], scales, zeros, domain=DOMAIN, **sizes)
        if table.shape[1] % GROUP:
            ends = (
                self.constant(name, np.array([at], np.int64))
                for name, at in (("begin", 0), ("end", int(table.shape[1])), ("axis", -1))
            )
            found = self.add(node, "Slice", found, *ends)
        self.replace(node, found)

    def half_lookup(self, node, table) -> None:
        half = self.constant("half", table.const_value.numpy().astype(np.float16))
        found = self.add(node, "Gather", half, node.inputs[1], axis=0)
        self.replace(node, self.add(node, "Cast", found, to=self.ir.DataType.FLOAT))


def quantize_rows(weight: np.ndarray, transpose: bool) -> Groups:
    """Return the codes of a matrix whose rows, or whose columns with `transpose`, are the outputs of a product."""
    return quantize_groups(torch.from_numpy(np.array(weight.T if transpose else weight, order="C")))


def find_product(node):
    """Return (weight, whether its columns are the outputs, bias) of a product by a constant, None for other nodes."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight, transpose, bias = node.inputs[1], True, None
    if node.op_type == "Gemm":
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        if any(node.attributes[name].value != value for name, value in plain.items() if name in node.attributes):
            return None
        transpose = not ("transB" in node.attributes and node.attributes["transB"].value)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose":
        weight, transpose = producer.inputs[0], not transpose
    if weight.const_value is None or len(weight.shape) != 2 or weight.shape[1 if transpose else 0] < GROUP:
        return None
    return weight, transpose, bias


def find_table(node):
    """Return the constant table, fp32 [rows, columns], whose rows a node looks up, or None."""
    table = node.inputs[0] if node.op_type == "Gather" else None
    if table is None or table.const_value is None or len(table.shape) != 2 or table.const_value.dtype.name != "FLOAT":
        return None
    return None if "axis" in node.attributes and node.attributes["axis"].value else table


def write_openvino_int4(graph: Path, file: Path) -> None:
    """Write OpenVINO's files (.xml and .bin) with the codes of write_onnx_int4.

    The files ask OpenVINO to leave activations in fp32, which it would round to int8 on some processors.

    Args:
        graph: The fp32 ONNX file.
        file: The .xml file to write.
    """
    import openvino

    model = openvino.Core().read_model(str(graph))
    weights: dict = {}  # a constant's name and whether it was transposed → its values, computed where they are read
    for kind, quantize in (("MatMul", _quantize_openvino_product), ("Gather", _quantize_openvino_lookup)):
        for node in model.get_ordered_ops():
            if node.get_type_name() == kind:
                quantize(node, weights)
    model.validate_nodes_and_infer_types()
    model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    openvino.save_model(model, str(file), compress_to_fp16=False)


def _quantize_openvino_product(node, weights: dict) -> None:
    import openvino.opset13 as ops

    producer, transpose = node.input_value(1).get_node(), not node.get_attributes()["transpose_b"]
    if producer.get_type_name() == "Transpose":
        producer, transpose = producer.input_value(0).get_node(), not transpose
    if producer.get_type_name() != "Constant" or len(producer.shape) != 2:
        return
    if producer.shape[1 if transpose else 0] < GROUP:
        return
    values, rows = _openvino_weight(producer, transpose, weights), node.input_value(0)
    if lacking := -producer.shape[0 if transpose else 1] % GROUP:
        begin = np.zeros(len(rows.partial_shape), np.int64)
        rows = ops.pad(rows, begin, np.append(begin[1:], lacking), "constant", 0.0).output(0)
    product = ops.matmul(rows, values, node.get_attributes()["transpose_a"], True)
    _replace_openvino_node(node, product)


def _quantize_openvino_lookup(node, weights: dict) -> None:
    import openvino.opset13 as ops

    table, axis = node.input_value(0).get_node(), node.input_value(2).get_node()
    if table.get_type_name() != "Constant" or len(table.shape) != 2 or table.get_element_type().is_integral():
        return
    if axis.get_type_name() != "Constant" or axis.data.item():
        return
    if (table.get_friendly_name(), False) in weights or np.prod(table.shape) > LARGE:
        values = _openvino_weight(table, False, weights)
    else:
        values = ops.convert(ops.constant(table.data.astype(np.float16)), np.float32)
    found = ops.gather(values, node.input_value(1), node.input_value(2))
    if values.shape[1] > table.shape[1]:
        found = ops.slice(found, [0], [table.shape[1]], [1], [-1])
    _replace_openvino_node(node, found)


def _openvino_weight(constant, transpose: bool, weights: dict):
    """Return the values of a constant, fp32 [outputs, groups · GROUP], as OpenVINO recognizes them."""
    import openvino
    import openvino.opset13 as ops

    key = constant.get_friendly_name(), transpose
    if key not in weights:
        groups = quantize_rows(constant.data, transpose)

        def four_bits(codes: torch.Tensor):
            tensor = openvino.Tensor(pack(codes.flatten()), list(codes.shape), openvino.Type.u4)
            return ops.convert(openvino.op.Constant(tensor, shared_memory=False), np.float32)

        scales = ops.constant((groups.scales * groups.steps).unsqueeze(-1).numpy().astype(np.float16))
        shifted = ops.subtract(four_bits(groups.codes), four_bits(groups.zeros.unsqueeze(-1)))
        values = ops.multiply(shifted, ops.convert(scales, np.float32))
        rows, number, size = groups.codes.shape
        weights[key] = ops.reshape(values, ops.constant(np.array([rows, number * size])), False)
    return weights[key]


def _replace_openvino_node(node, new) -> None:
    new.set_friendly_name(node.get_friendly_name())
    names = node.output(0).get_names()
    node.output(0).replace(new.output(0))
    new.output(0).set_names(names)
