"""Changes to an ONNX graph: new constants and nodes, and old ones replaced."""

from __future__ import annotations

import numpy as np


class OnnxEditor:
    """Edits an onnx_ir graph in place; what it adds has names that begin with `prefix`."""

    def __init__(self, graph, prefix: str):
        import onnx_ir

        self.ir, self.graph, self.prefix, self.number = onnx_ir, graph, prefix, 0

    def constant(self, name: str, array: np.ndarray):
        """Return a new initializer."""
        self.number += 1
        tensor = self.ir.tensor(array)
        value = self.ir.Value(name=f"{self.prefix}_{name}_{self.number}", const_value=tensor)
        value.type, value.shape = self.ir.TensorType(tensor.dtype), self.ir.Shape(array.shape)
        tensor.name = value.name
        self.graph.register_initializer(value)
        return value

    def add(self, before, operator: str, *inputs, domain: str = "", **attributes):
        """Return the output of a new node that is inserted before the node `before`."""
        self.number += 1
        node = self.ir.node(operator, inputs=inputs, attributes=attributes or None, domain=domain)
        node.outputs[0].name = f"{self.prefix}_{operator}_{self.number}"
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, node, value) -> None:
        """Have `value` take the place of the output of `node`, which is removed."""
        old = node.outputs[0]
        for number, output in enumerate(self.graph.outputs):
            if output is old:
                value.name, value.shape, value.type = old.name, old.shape, old.type
                old.name = f"{old.name}_before"
                self.graph.outputs[number] = value
        self.ir.convenience.replace_all_uses_with(old, value)
        self.graph.remove(node, safe=True)

    def drop_unused(self) -> None:
        """Remove nodes and constants that nothing reads."""
        from onnx_ir.passes.common import RemoveUnusedNodesPass

        RemoveUnusedNodesPass()(self.ir.Model(self.graph, ir_version=10))
