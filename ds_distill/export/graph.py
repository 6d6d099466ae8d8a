"""A model as a traced graph: an ONNX file, or torch's own program. Through transformers' exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

from ds_distill.export.source import Source

OPSET = 20  # of ONNX: the first with Gelu as one node, and what onnxruntime 1.18 (2024) and later read


def write_onnx(source: Source, file: Path) -> None:
    """One file, fp32, opset 20; axes `batch` and `sequence` are free, `sequence` up to the model's positions. The tied matrix is in it once."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers.exporters import OnnxConfig, OnnxExporter

    with silence():
        exported = OnnxExporter().export(source.model, source.sample(), OnnxConfig(dynamic_shapes=_free_axes(source), opset_version=OPSET))
    graph = exported.program
    ClearMetadataAndDocStringPass()(graph)  # else every node names the Python files it was traced from
    names = dict(zip((axis.value for axis in graph.graph.inputs[0].shape), ("batch", "sequence"), strict=True))
    values = [*graph.graph.inputs, *(value for node in graph.graph.all_nodes() for value in node.outputs)]
    for value in values:
        for i, axis in enumerate(value.shape or ()):
            if isinstance(axis, onnx_ir.SymbolicDim) and axis.value in names:
                value.shape[i] = names[axis.value]
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(graph, file)


def write_program(source: Source, file: Path) -> None:
    """torch.export's file (.pt2), with the same free axes."""
    import torch
    from transformers.exporters import DynamoConfig, DynamoExporter

    with silence():
        exported = DynamoExporter().export(source.model, source.sample(), DynamoConfig(dynamic_shapes=_free_axes(source)))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.export.save(exported.program, str(file))


def _free_axes(source: Source) -> dict:
    from torch.export import Dim

    axes = {0: Dim("batch"), 1: Dim("sequence", max=source.positions)}
    return {name: axes for name in source.inputs}


@contextlib.contextmanager
def silence():
    """The exporters and quantizers print each of their steps, and warn about operators of packages that are not there."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
