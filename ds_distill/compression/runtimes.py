"""The runtimes in which latencies are measured."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ds_distill.exporters.int8 import write_onnx_int8, write_openvino_int8
from ds_distill.exporters.model import ExportModel
from ds_distill.exporters.onnx import write_onnx
from ds_distill.exporters.parity import torch_runner
from ds_distill.exporters.runtimes import OnnxRunner, OpenvinoRunner, Runner
from ds_distill.utils.errors import UserError

NEEDS = {
    "torch": (),
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "onnxruntime-int8": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "openvino-int8": ("onnx", "onnxscript", "openvino", "nncf"),
}


def check_runtime(runtime: str) -> None:
    """Raise UserError where a module is missing that a runtime needs."""
    missing = [module for module in NEEDS.get(runtime, ()) if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"--runtime {runtime}: needs {', '.join(missing)}; run pip install 'ds-distill[deploy]'")


def load_in_runtime(model: PreTrainedModel, runtime: str, batch: int, length: int) -> Callable[[], object]:
    """Return a call that runs a model once, in a runtime with all cores, on tokens of one shape.

    Args:
        model: The model, in fp32, in eval mode, on the CPU.
        runtime: A key of NEEDS.
        batch: Sequences per call.
        length: Tokens per sequence.
    """
    source = ExportModel(Path(), model, None, "encoder")
    ids = np.arange(batch * length, dtype=np.int64).reshape(batch, length) % model.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}  # those of a source without a tokenizer
    if runtime == "torch":
        model.set_attn_implementation("sdpa")
        run: Runner = torch_runner(source)
    else:
        model.set_attn_implementation("eager")
        with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
            run = _load_exported(source, runtime, Path(scratch))
    return lambda: run(inputs)


def _load_exported(source: ExportModel, runtime: str, scratch: Path) -> Runner:
    """Write a model for a runtime and load it; runtimes keep what they have loaded in memory."""
    graph = scratch / "model.onnx"
    write_onnx(source, graph)
    if runtime == "onnxruntime":
        return OnnxRunner(graph)
    if runtime == "onnxruntime-int8":
        write_onnx_int8(graph, scratch / "int8.onnx", paired=True)
        return OnnxRunner(scratch / "int8.onnx")
    if runtime == "openvino":
        return OpenvinoRunner(graph)
    write_openvino_int8(graph, scratch / "int8.xml", source.widths)
    return OpenvinoRunner(scratch / "int8.xml")
