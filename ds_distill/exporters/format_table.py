"""The deployable formats: how each is written, loaded and checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ds_distill.exporters.int4 import write_onnx_int4, write_openvino_int4
from ds_distill.exporters.int8 import full_range_unavailable_reason, write_onnx_int8, write_openvino_int8
from ds_distill.exporters.int8_calibration import Inputs, collect_inputs
from ds_distill.exporters.model import ExportModel
from ds_distill.exporters.onnx import OPSET, write_onnx, write_program
from ds_distill.exporters.parity import Batch
from ds_distill.exporters.runtimes import OnnxRunner, OpenvinoRunner, Runner, load_program
from ds_distill.utils.console import progress_over, spinner

# Four bits are a choice of size over accuracy, but a file that reverses half of the clear choices is another model:
# real models keep about nine of ten without training.
LEAST_FOUR_BITS = 0.5


@dataclass
class Job:
    """The model, the batches and the scratch folder that the formats of one export share.

    Attributes:
        source: The model.
        batches: Those that the formats are compared on.
        scratch: The folder.
        calibrate: Those that int8 files are calibrated on; none where weights are rounded to the nearest.
    """

    source: ExportModel
    batches: list[Batch]
    scratch: Path
    calibrate: list[Batch] = field(default_factory=list)

    @cached_property
    def graph(self) -> Path:
        """The fp32 ONNX file, traced once."""
        file = self.scratch / "fp32" / "model.onnx"
        with spinner("tracing the model"):
            write_onnx(self.source, file)
        return file

    @cached_property
    def calibration(self) -> dict[str, Inputs]:
        """What the products of the graph read of the calibration text; empty without one."""
        if not self.calibrate:
            return {}
        inputs = [batch.inputs for batch in self.calibrate]
        return collect_inputs(self.graph, progress_over(inputs, "calibration"), self.scratch)


@dataclass(frozen=True)
class Format:
    """A deployable format: how it is written, loaded and checked.

    Attributes:
        file: Its path in the output folder, named so that programs that load such folders find it.
        runtime: The runtime's name, with what the runtime has to be told.
        needs: The modules that it needs.
        exact: Whether its outputs must equal PyTorch's.
        write: Called with (job, file) to write the file.
        load: Loads the file with its own runtime.
        example: An expression that runs the file.
        unavailable_reason: Returns why this machine cannot run it, or None.
        calibrated: Whether it can be calibrated on text.
        least: The share of PyTorch's clear first choices that it must keep to be published.
    """

    file: str
    runtime: str
    needs: tuple[str, ...]
    exact: bool
    write: Callable[[Job, Path], object]
    load: Callable[[Path], Runner]
    example: str
    unavailable_reason: Callable[[], str | None] = lambda: None
    calibrated: bool = False
    least: float = 0.0


NEEDS_ONNX = ("onnx", "onnxscript", "onnxruntime")
RUN_ONNX = "onnxruntime.InferenceSession({file!r}).run(None, dict(x))[0]"
RUN_OPENVINO = 'openvino.compile_model({file!r}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})(dict(x))[0]'

FORMATS = {
    "onnx": Format(
        "onnx/model.onnx",
        f"ONNX Runtime, opset {OPSET}",
        NEEDS_ONNX,
        True,
        lambda job, file: _copy_parts(job.graph, file),
        OnnxRunner,
        RUN_ONNX,
    ),
    "onnx-int8": Format(
        "onnx/model_quantized.onnx",
        f"ONNX Runtime, opset {OPSET}",
        NEEDS_ONNX,
        False,
        lambda job, file: write_onnx_int8(job.graph, file, paired=True, calibration=job.calibration),
        OnnxRunner,
        RUN_ONNX,
        calibrated=True,
    ),
    "onnx-int8-vnni": Format(
        "onnx/model_qint8_avx512_vnni.onnx",
        f"ONNX Runtime, opset {OPSET}, on a processor with VNNI",
        NEEDS_ONNX,
        False,
        lambda job, file: write_onnx_int8(job.graph, file, paired=False, calibration=job.calibration),
        OnnxRunner,
        RUN_ONNX,
        full_range_unavailable_reason,
        calibrated=True,
    ),
    "onnx-int4": Format(
        "onnx/model_q4.onnx",
        f"ONNX Runtime, opset {OPSET}",
        NEEDS_ONNX,
        False,
        lambda job, file: write_onnx_int4(job.graph, file),
        OnnxRunner,
        RUN_ONNX,
        least=LEAST_FOUR_BITS,
    ),
    "openvino-int8": Format(
        "openvino/openvino_model.xml",
        "OpenVINO",
        ("onnx", "onnxscript", "openvino", "nncf"),
        False,
        lambda job, file: write_openvino_int8(job.graph, file, job.source.widths),
        OpenvinoRunner,
        RUN_OPENVINO,
    ),
    "openvino-int4": Format(
        "openvino/openvino_model_int4.xml",
        "OpenVINO",
        ("onnx", "onnxscript", "openvino"),
        False,
        lambda job, file: write_openvino_int4(job.graph, file),
        OpenvinoRunner,
        RUN_OPENVINO,
        least=LEAST_FOUR_BITS,
    ),
    "torch-export": Format(
        "torch/model.pt2",
        "torch.export",
        (),
        True,
        lambda job, file: write_program(job.source, file),
        load_program,
        "torch.export.load({file!r}).module()(**x)[{first!r}]",
    ),
}


def get_parts(file: Path) -> list[Path]:
    """Return a format's file and the files beside it that belong to it; the file itself comes last.

    Such files are OpenVINO's weights, and the weights of an ONNX file beyond 2 GiB.
    """
    return sorted(file.parent.glob(f"{file.stem}.*"), key=lambda part: part == file)


def _copy_parts(graph: Path, file: Path) -> None:
    """Copy an ONNX file and the files beside it under their own names, because the file refers to them."""
    for part in get_parts(graph):
        shutil.copyfile(part, file.parent / part.name)
