"""The backends that can run an encoder.

Each backend loads a model in its own way, in a process of its own, which then answers requests for
its times.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.inference.energy import joules
from ds_distill.utils.memory import trim_heap


@dataclass(frozen=True)
class Row:
    """One row of the benchmark, as its process receives it.

    Attributes:
        folder: A Hugging Face folder.
        files: The folder to which `prepare` wrote the exported files.
        positions: The most tokens that the model reads.
    """

    model: str
    backend: str
    head: str
    threads: int
    folder: Path
    files: Path
    positions: int = 512

    @property
    def name(self) -> str:
        """The row's name in messages: the model and the backend."""
        return f"{self.model}, {BACKENDS[self.backend].label}"


@dataclass(frozen=True)
class Backend:
    """A backend.

    Attributes:
        label: The backend's name in tables.
        load: A function from a Row to a function from inputs (int64 [B, L] by name) to the outputs.
        file: The backend's file below Row.files; None for the folder's own weights.
        width: Bytes of a weight in memory, if there is no file.
        linear: Bytes of a linear layer's weight, if they differ from `width`.
        needs: A module that must be installed.
        install: The command that installs it.
        bits: Bits of a weight in the file, if they are quantized.
        gpu: Whether it computes on a GPU.
        vnni: Whether its products need a processor that accumulates them in 32 bits.
    """

    label: str
    load: Callable[[Row], Callable]
    file: str | None = None
    width: int = 4
    linear: int | None = None
    needs: str | None = None
    install: str = "pip install -r requirements-deploy.txt"
    bits: int | None = None
    gpu: bool = False
    vnni: bool = False


def load_torch(
    row: Row, *, dtype: str = "float32", compiled: bool = False, device: str = "cpu", int8: bool = False
) -> Callable:
    """Load a model as a user would: from_pretrained, torch's own attention, inference mode.

    `int8` uses torchao with one scale per token and per output, as its documentation recommends for
    CPUs.
    """
    import torch
    from transformers import AutoConfig

    from ds_distill.exporters.model import HEADS, without_pooler
    from ds_distill.models.loading import pretrained_class

    torch.set_num_threads(row.threads)
    torch.manual_seed(0)  # for heads that the folder lacks
    config = AutoConfig.from_pretrained(row.folder)
    options = without_pooler(row.head, config.model_type)  # as in the exported files
    maker = pretrained_class(HEADS[row.head][1], config)
    model = maker.from_pretrained(row.folder, dtype=getattr(torch, dtype), **options).eval().to(device)
    if int8:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        torch._inductor.config.freezing = True  # the patterns for int8 products need constant weights
    call = torch.compile(model, dynamic=True) if compiled else model

    def run(inputs: dict[str, np.ndarray]) -> list:
        with torch.inference_mode():
            outputs = call(**{name: torch.from_numpy(value).to(device) for name, value in inputs.items()}).to_tuple()
        if device == "cuda":
            torch.cuda.synchronize()
        return list(outputs)

    return run


def load_onnx(row: Row) -> Callable:
    """Load the row's ONNX file in ONNX Runtime."""
    from ds_distill.exporters.runtimes import OnnxRunner

    return OnnxRunner(row.files / BACKENDS[row.backend].file, row.threads)


def load_openvino(row: Row, precision: str = "f32") -> Callable:
    """Load the row's file in OpenVINO."""
    from ds_distill.exporters.runtimes import OpenvinoRunner

    return OpenvinoRunner(row.files / BACKENDS[row.backend].file, row.threads, precision)


def _torch(label: str, **how) -> Backend:
    return Backend(
        label, lambda row: load_torch(row, **how), width=2 if "dtype" in how else 4, gpu=how.get("device") == "cuda"
    )


def _onnx(label: str, file: str, bits: int | None = None, vnni: bool = False) -> Backend:
    return Backend(label, load_onnx, file, needs="onnxruntime", bits=bits, vnni=vnni)


BACKENDS = {
    "eager_fp32": _torch("PyTorch, fp32"),
    "eager_bf16": _torch("PyTorch, bf16", dtype="bfloat16"),
    "compiled_fp32": _torch("torch.compile, fp32", compiled=True),
    "compiled_bf16": _torch("torch.compile, bf16", dtype="bfloat16", compiled=True),
    "onnx_fp32": _onnx("ONNX Runtime, fp32", "fp32.onnx"),
    "onnx_int8": _onnx("ONNX Runtime, int8, per-token ranges", "int8.onnx", bits=8),
    "onnx_int8_vnni": _onnx("ONNX Runtime, int8, per-token ranges, VNNI", "int8_vnni.onnx", bits=8, vnni=True),
    "onnx_int4": _onnx("ONNX Runtime, int4 weights", "int4.onnx", bits=4),
    "onnx_dynamic": _onnx("ONNX Runtime's own int8, dynamic", "dynamic.onnx", bits=8),
    "onnx_static": _onnx("ONNX Runtime's own int8, static", "static.onnx", bits=8),
    "openvino_fp32": Backend("OpenVINO, fp32", load_openvino, "fp32.onnx", needs="openvino"),
    "openvino_bf16": Backend("OpenVINO, bf16", lambda row: load_openvino(row, "bf16"), "fp32.onnx", needs="openvino"),
    "openvino_int8": Backend("OpenVINO, int8", load_openvino, "openvino.xml", needs="openvino", bits=8),
    "openvino_int4": Backend("OpenVINO, int4 weights", load_openvino, "openvino_int4.xml", needs="openvino", bits=4),
    "torchao_int8": Backend(
        "torchao, int8, torch.compile",
        lambda row: load_torch(row, compiled=True, int8=True),
        linear=1,
        needs="torchao",
        install="pip install torchao (only this benchmark needs it)",
        bits=8,
    ),
    "gpu_fp32": _torch("PyTorch, fp32, GPU", device="cuda"),
    "gpu_fp16": _torch("PyTorch, fp16, GPU", dtype="float16", device="cuda"),
    "gpu_bf16": _torch("PyTorch, bf16, GPU", dtype="bfloat16", device="cuda"),
    "gpu_compiled": _torch("torch.compile, fp16, GPU", dtype="float16", compiled=True, device="cuda"),
}


def make_inputs(lengths: list[int], vocabulary: int = 200) -> dict[str, np.ndarray]:
    """Return a batch of sequences of these lengths, padded to the longest.

    Tokens are drawn with a fixed seed, from a vocabulary that every model has.
    """
    longest = max(lengths)
    mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(longest).integers(1, vocabulary, (len(lengths), longest))
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def make(row: Row) -> tuple[Callable, dict]:
    """Load a row's model; return its Answers and the load time in seconds up to the first answer.

    Libraries are imported before the clock starts.
    """
    if BACKENDS[row.backend].file is None:
        import torch  # noqa: F401
        import transformers  # noqa: F401

        import ds_distill.exporters.model  # noqa: F401
    elif "openvino" in row.backend:
        import openvino  # noqa: F401
    else:
        import onnxruntime  # noqa: F401
    names = (row.files / "inputs.txt").read_text(encoding="utf-8").split()
    began = time.perf_counter()
    run = BACKENDS[row.backend].load(row)

    def call(lengths: list[int]) -> Callable:
        inputs = {name: value for name, value in make_inputs(lengths).items() if name in names}
        return lambda: run(inputs)

    call([32])()
    return Answers(run, call, names, BACKENDS[row.backend].gpu), {"load_seconds": time.perf_counter() - began}


class Answers:
    """The answers that one row's process can give.

    Args:
        run: The loaded backend.
        call: A function from lengths to a function that runs the backend on such a batch.
        names: The names of the model's inputs.
        gpu: Whether the backend computes on a GPU.
    """

    def __init__(self, run: Callable, call: Callable, names: list[str], gpu: bool):
        self.run, self.call, self.names, self.gpu, self.warm = run, call, names, gpu, set()

    def time(self, key, batches: list[list[int]], seconds: float) -> dict:
        """Run `batches` again and again for `seconds`, at least once, and return latencies and energy.

        Some uncounted calls come first: all batches the first time that `key` is requested, later
        only the first batch, because other rows have used the caches since.

        Args:
            key: The name of the case.
            batches: The lengths of the sequences in each batch.
            seconds: The time to fill.

        Returns:
            `latencies` in seconds per call, and `joules` of all counted calls, or None.
        """
        jobs = [self.call(lengths) for lengths in batches]
        for job in jobs[:1] if key in self.warm else jobs:
            job()
        self.warm.add(key)
        latencies: list[float] = []
        before, began = joules(self.gpu), time.perf_counter()
        while not latencies or time.perf_counter() - began < seconds:
            for job in jobs:
                start = time.perf_counter()
                job()
                latencies.append(time.perf_counter() - start)
        after = joules(self.gpu)
        return {"latencies": latencies, "joules": None if before is None or after is None else after - before}

    def choices(self, batches: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> list[np.ndarray]:
        """Return the top-1 predictions at masked tokens; `batches` has (inputs by name, where they are masked)."""
        predictions = []
        for inputs, at in batches:
            logits = self.run({name: inputs[name] for name in self.names})[0]
            logits = logits if isinstance(logits, np.ndarray) else logits.float().cpu().numpy()
            predictions.append(logits[at].argmax(-1))
        return predictions

    def rest(self) -> None:
        """Release the memory of the calls so far.

        All rows are in memory at once, and most of this memory belongs to the largest case.
        """
        getattr(self.run, "rest", lambda: None)()
        trim_heap()

    def peak_bytes(self) -> int:
        """Return the most memory that this process has had, including its libraries."""
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        return 0


def serve(link, make: Callable, setting: Row) -> None:
    """Run the process of one row.

    It answers ("start",) with the result of `make`, and (method, *arguments) with the result of
    that method of Answers.
    """
    answers = None
    try:
        while (what := link.recv()) != "stop":
            try:
                if what == "start":
                    answers, result = make(setting)
                else:
                    result = getattr(answers, what[0])(*what[1:])
                link.send((True, result))
            except Exception:  # the benchmark reports it with the row's name
                link.send((False, traceback.format_exc()))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass
