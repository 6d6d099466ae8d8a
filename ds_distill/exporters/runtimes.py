"""Loading of an exported file in its own runtime.

Each loader takes the file and a number of threads (None for the runtime's default, all cores). The
result is called with inputs, int64 [B, L] by name, and returns the outputs in the model's order.
Inputs that the file does not take are left out.

torch is imported only where the file needs it, so that measurements here include only what a
deployer starts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Runner = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class OnnxRunner:
    """An ONNX file in ONNX Runtime. rest() returns the memory that earlier, larger calls took."""

    def __init__(self, file: Path, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads or 0, 3
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]
        self.shrinking = onnxruntime.RunOptions()
        self.shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.session.run(None, {name: inputs[name] for name in self.names})

    def rest(self) -> None:
        single_token = {name: np.full((1, 1), name == "attention_mask", np.int64) for name in self.names}
        self.session.run(None, single_token, self.shrinking)  # memory shrinks only at the end of a call


class OpenvinoRunner:
    """An OpenVINO file in OpenVINO. rest() returns the memory that earlier, larger calls took.

    The precision applies to what is not quantized. It is "f32", or "bf16" where the processor has
    units for it, and there "bf16" is OpenVINO's own default.
    """

    def __init__(self, file: Path, threads: int | None = None, precision: str = "f32"):
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision} | (
            {"INFERENCE_NUM_THREADS": threads} if threads else {}
        )
        self.compiled = openvino.Core().compile_model(str(file), "CPU", settings)
        self.request, self.names = (
            self.compiled.create_infer_request(),
            [port.get_any_name() for port in self.compiled.inputs],
        )

    def __call__(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = self.request.infer({name: inputs[name] for name in self.names})
        # copies, since the next call overwrites what this one returned
        return [outputs[port].copy() for port in self.compiled.outputs]

    def rest(self) -> None:
        self.compiled.release_memory()


def load_program(file: Path, threads: int | None = None) -> Runner:
    """Load a file of torch.export; return a function that runs it."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    program = torch.export.load(str(file))
    names, module = (
        [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"],
        program.module(),
    )

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(**{name: torch.from_numpy(inputs[name]) for name in names})
        return [value.numpy() for value in (outputs.values() if isinstance(outputs, dict) else outputs)]

    return run
