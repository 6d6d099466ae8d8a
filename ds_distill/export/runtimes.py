"""Loading an exported file in its own runtime. Imports no torch unless the file needs it: what is measured here is what a deployer starts.

Each takes the file and a number of threads (None: the runtime's default, all cores) and is then called with inputs, int64 [B, L] by name, for the
outputs in the model's order. Inputs that the file does not take are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Runner = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class OnnxRunner:
    """rest() gives back the memory that earlier, larger calls took."""

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
        one = {name: np.full((1, 1), name == "attention_mask", np.int64) for name in self.names}
        self.session.run(None, one, self.shrinking)  # it shrinks at a call's end only


class OpenvinoRunner:
    """precision: of what is not quantised; "f32", or "bf16" where the processor has units for it (OpenVINO's own default there). rest() gives back the
    memory that earlier, larger calls took."""

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
        found = self.request.infer({name: inputs[name] for name in self.names})
        return [
            found[port].copy() for port in self.compiled.outputs
        ]  # the next call writes over what this one returned

    def rest(self) -> None:
        self.compiled.release_memory()


def load_program(file: Path, threads: int | None = None) -> Runner:
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
            found = module(**{name: torch.from_numpy(inputs[name]) for name in names})
        return [value.numpy() for value in (found.values() if isinstance(found, dict) else found)]

    return run
