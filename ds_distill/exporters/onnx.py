"""Export of a model as a traced graph, an ONNX file or torch's own program, through transformers' exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedModel

from ds_distill.exporters.model import ExportModel
from ds_distill.exporters.onnx_editor import OnnxEditor

# ONNX's first opset with Gelu as one node. onnxruntime 1.18 (2024) and later read it.
OPSET = 20
# Bytes of weights that a file holds itself. Beyond 2 GiB protobuf cannot write it, so the weights
# go into a file beside it.
LARGEST_FILE = 2**31 - 2**26


def write_onnx(source: ExportModel, file: Path) -> None:
    """Write the fp32 graph as ONNX, opset 20.

    The axes `batch` and `sequence` are free, `sequence` up to the model's positions. The tied
    matrix is stored once.
    """
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers.exporters import OnnxConfig, OnnxExporter

    with silence():
        exported = OnnxExporter().export(
            source.traced,
            cast(dict[str, Any], source.sample()),
            OnnxConfig(dynamic_shapes=_free_axes(source), opset_version=OPSET),
        )
    graph = exported.program
    ClearMetadataAndDocStringPass()(graph)  # else every node names the Python files that it was traced from
    names = dict(zip((axis.value for axis in graph.graph.inputs[0].shape), ("batch", "sequence"), strict=True))
    values = [*graph.graph.inputs, *(value for node in graph.graph.all_nodes() for value in node.outputs)]
    for value in values:
        for i, axis in enumerate(value.shape or ()):
            if isinstance(axis, onnx_ir.SymbolicDim) and axis.value in names:
                value.shape[i] = names[axis.value]
    fold_transposes(graph.graph)
    save_graph(graph, file)


def fold_transposes(graph) -> None:
    """Store a matrix that layers share as their products read it, in place.

    The exporter does so only for a matrix of one product, and tools that quantize do not look behind a Transpose.
    A table for lookups stays as it is.
    """
    editor = OnnxEditor(graph, "transposed")
    for node in list(graph):
        matrix = node.inputs[0] if node.op_type == "Transpose" else None
        if matrix is not None and matrix.const_value is not None and len(matrix.uses()) == 1:
            values = matrix.const_value.numpy().transpose(node.attributes["perm"].as_ints())
            editor.replace(node, editor.constant("matrix", np.ascontiguousarray(values)))
    editor.drop_unused()


def save_graph(graph, file: Path) -> None:
    """Write an onnx_ir.Model as one file, with weights that are too large for one in `file`_data beside it.

    ONNX Runtime's own tools use that name, and transformers.js looks for it. Readers find the
    weights by the name alone, so the two files must move together.
    """
    import onnx_ir

    file.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(
        value.const_value.nbytes
        for part in graph.graphs()
        for value in part.initializers.values()
        if value.const_value is not None
    )
    if weights > LARGEST_FILE:
        onnx_ir.save(graph, file, external_data=f"{file.name}_data")
    else:
        # the weights of a graph that was read from a file may still lie in the file beside it
        onnx_ir.external_data.load_to_model(graph)
        onnx_ir.save(graph, file)


def write_program(source: ExportModel, file: Path) -> None:
    """Write torch.export's file (.pt2) with the same free axes.

    The program returns a plain dictionary, so that torch alone can load it.
    """
    import torch
    from transformers.exporters import DynamoConfig, DynamoExporter

    with silence():
        with _plain_outputs(source.traced):
            exported = DynamoExporter().export(
                source.traced, cast(dict[str, Any], source.sample()), DynamoConfig(dynamic_shapes=_free_axes(source))
            )
        for part in exported.program.graph_module.modules():
            for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # it names the Python files of this machine
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(exported.program, str(file))


@contextlib.contextmanager
def _plain_outputs(model: PreTrainedModel) -> Iterator[None]:
    """Have the model return a dictionary, since torch knows transformers' output classes only where it is imported."""
    forward = model.forward
    model.forward = lambda **inputs: dict(forward(**inputs).items())
    try:
        yield
    finally:
        del model.forward  # uncovers the class's own


def _free_axes(source: ExportModel) -> dict:
    from torch.export import Dim

    axes = {0: Dim("batch"), 1: Dim("sequence", max=source.positions)}
    return {name: axes for name in source.inputs}


@contextlib.contextmanager
def silence():
    """Silence exporters and quantizers, which print each step and warn about operators of packages not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
