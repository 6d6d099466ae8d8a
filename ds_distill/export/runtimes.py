"""Loading an exported file in its own runtime. Imports no torch unless the file needs it: what is measured here is what a deployer starts.

Each loader takes the file and a number of threads (None: the runtime's default, all cores) and returns a function from inputs, int64 [B, L] by
name, to the outputs in the model's order. Inputs that the file does not take are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Runner = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def load_onnx(file: Path, threads: int | None = None) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads or 0, 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})


def load_openvino(file: Path, threads: int | None = None, precision: str = "f32") -> Runner:
    """precision: of what is not quantised; "f32", or "bf16" where the processor has units for it (OpenVINO's own default there)."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    request, names = compiled.create_infer_request(), [port.get_any_name() for port in compiled.inputs]

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = request.infer({name: inputs[name] for name in names})
        return [found[port].copy() for port in compiled.outputs]  # the next call writes over what this one returned

    return run


def load_program(file: Path, threads: int | None = None) -> Runner:
    import torch

    if threads:
        torch.set_num_threads(threads)
    program = torch.export.load(str(file))
    names, module = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"], program.module()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            found = module(**{name: torch.from_numpy(inputs[name]) for name in names})
        return [value.numpy() for value in (found.values() if isinstance(found, dict) else found)]

    return run
