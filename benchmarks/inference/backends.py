"""What can run an encoder: each body loads a model its own way, in a process of its own, and is asked for its times."""

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
    """One line of the benchmark, as its process is given it. folder: a Hugging Face folder; files: where `prepare` has put the exported ones.
    positions: the most tokens that it reads."""

    model: str
    body: str
    head: str
    threads: int
    folder: Path
    files: Path
    positions: int = 512

    @property
    def name(self) -> str:
        return f"{self.model}, {BODIES[self.body].label}"


@dataclass(frozen=True)
class Body:
    """load: a Row → a function from inputs, int64 [B, L] by name, to the outputs. file: its file below Row.files; none: the folder's own weights.
    width: bytes of a weight in memory, where there is no file, and linear of a linear layer's, if they differ; needs: a module that must be there,
    install: what brings it. int8, gpu: whether it computes in int8, on a GPU; vnni: whether its products need a processor that adds them in 32 bits."""

    label: str
    load: Callable[[Row], Callable]
    file: str | None = None
    width: int = 4
    linear: int | None = None
    needs: str | None = None
    install: str = "pip install -r requirements-deploy.txt"
    int8: bool = False
    gpu: bool = False
    vnni: bool = False


def torch_body(
    row: Row, *, dtype: str = "float32", compiled: bool = False, device: str = "cpu", int8: bool = False
) -> Callable:
    """As a user has it: from_pretrained, torch's own attention, inference mode. int8: by torchao, a scale a token and an output, as its documentation
    has it for CPUs."""
    import torch
    from transformers import AutoConfig

    from ds_distill.export.model import HEADS, without_pooler

    torch.set_num_threads(row.threads)
    torch.manual_seed(0)  # heads that the folder lacks
    own = without_pooler(row.head, AutoConfig.from_pretrained(row.folder).model_type)  # as the exported files have it
    model = HEADS[row.head][1].from_pretrained(row.folder, dtype=getattr(torch, dtype), **own).eval().to(device)
    if int8:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        torch._inductor.config.freezing = True  # weights as constants, which its patterns for int8 products need
    call = torch.compile(model, dynamic=True) if compiled else model

    def run(inputs: dict[str, np.ndarray]) -> list:
        with torch.inference_mode():
            found = call(**{name: torch.from_numpy(value).to(device) for name, value in inputs.items()}).to_tuple()
        if device == "cuda":
            torch.cuda.synchronize()
        return list(found)

    return run


def onnx_body(row: Row) -> Callable:
    from ds_distill.export.runtimes import OnnxRunner

    return OnnxRunner(row.files / BODIES[row.body].file, row.threads)


def openvino_body(row: Row, precision: str = "f32") -> Callable:
    from ds_distill.export.runtimes import OpenvinoRunner

    return OpenvinoRunner(row.files / BODIES[row.body].file, row.threads, precision)


def _torch(label: str, **how) -> Body:
    return Body(
        label, lambda row: torch_body(row, **how), width=2 if "dtype" in how else 4, gpu=how.get("device") == "cuda"
    )


def _onnx(label: str, file: str, int8: bool = False, vnni: bool = False) -> Body:
    return Body(label, onnx_body, file, needs="onnxruntime", int8=int8, vnni=vnni)


BODIES = {
    "eager_fp32": _torch("PyTorch, fp32"),
    "eager_bf16": _torch("PyTorch, bf16", dtype="bfloat16"),
    "compiled_fp32": _torch("torch.compile, fp32", compiled=True),
    "compiled_bf16": _torch("torch.compile, bf16", dtype="bfloat16", compiled=True),
    "onnx_fp32": _onnx("ONNX Runtime, fp32", "fp32.onnx"),
    "onnx_int8": _onnx("ONNX Runtime, int8, a range a token", "int8.onnx", int8=True),
    "onnx_int8_vnni": _onnx("ONNX Runtime, int8, a range a token, for VNNI", "int8_vnni.onnx", int8=True, vnni=True),
    "onnx_dynamic": _onnx("ONNX Runtime's own int8, dynamic", "dynamic.onnx", int8=True),
    "onnx_static": _onnx("ONNX Runtime's own int8, static", "static.onnx", int8=True),
    "openvino_fp32": Body("OpenVINO, fp32", openvino_body, "fp32.onnx", needs="openvino"),
    "openvino_bf16": Body("OpenVINO, bf16", lambda row: openvino_body(row, "bf16"), "fp32.onnx", needs="openvino"),
    "openvino_int8": Body("OpenVINO, int8", openvino_body, "openvino.xml", needs="openvino", int8=True),
    "torchao_int8": Body(
        "torchao, int8, torch.compile",
        lambda row: torch_body(row, compiled=True, int8=True),
        linear=1,
        needs="torchao",
        install="pip install torchao, which no format here needs",
        int8=True,
    ),
    "gpu_fp32": _torch("PyTorch, fp32, GPU", device="cuda"),
    "gpu_fp16": _torch("PyTorch, fp16, GPU", dtype="float16", device="cuda"),
    "gpu_bf16": _torch("PyTorch, bf16, GPU", dtype="bfloat16", device="cuda"),
    "gpu_compiled": _torch("torch.compile, fp16, GPU", dtype="float16", compiled=True, device="cuda"),
}


def inputs_of(lengths: list[int], vocabulary: int = 200) -> dict[str, np.ndarray]:
    """A batch of sequences of these lengths, padded to the longest; tokens drawn from a fixed seed, of a vocabulary that every model has."""
    longest = max(lengths)
    mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(longest).integers(1, vocabulary, (len(lengths), longest))
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def make(row: Row) -> tuple[Callable, dict]:
    """(what answers questions, load time in seconds up to the first answer). Libraries are imported before the clock starts."""
    if BODIES[row.body].file is None:
        import torch  # noqa: F401
        import transformers  # noqa: F401

        import ds_distill.export.model  # noqa: F401
    elif "openvino" in row.body:
        import openvino  # noqa: F401
    else:
        import onnxruntime  # noqa: F401
    names = (row.files / "inputs.txt").read_text(encoding="utf-8").split()
    began = time.perf_counter()
    run = BODIES[row.body].load(row)

    def call(lengths: list[int]) -> Callable:
        inputs = {name: value for name, value in inputs_of(lengths).items() if name in names}
        return lambda: run(inputs)

    call([32])()
    return Answers(run, call, names, BODIES[row.body].gpu), {"load_seconds": time.perf_counter() - began}


class Answers:
    """run: the body; call: lengths → a function that runs it on such a batch; gpu: whether it computes on one."""

    def __init__(self, run: Callable, call: Callable, names: list[str], gpu: bool):
        self.run, self.call, self.names, self.gpu, self.warm = run, call, names, gpu, set()

    def time(self, key, batches: list[list[int]], seconds: float) -> dict:
        """Latencies in seconds of going through `batches` (the lengths in each) again and again for `seconds`, once at least. The first time `key` is
        asked for, all of them come before and are not counted, later the first: other rows have had the caches since. joules: of all counted calls, or
        None."""
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
        """First choices of tokens; batches: (inputs by name, where they are masked)."""
        found = []
        for inputs, at in batches:
            logits = self.run({name: inputs[name] for name in self.names})[0]
            logits = logits if isinstance(logits, np.ndarray) else logits.float().cpu().numpy()
            found.append(logits[at].argmax(-1))
        return found

    def rest(self) -> None:
        """Give back the memory of the calls so far: all rows are there at once, and most of it is the largest case's."""
        getattr(self.run, "rest", lambda: None)()
        trim_heap()

    def peak_bytes(self) -> int:
        """Most memory this process has had, its libraries included."""
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        return 0


def serve(link, make: Callable, setting: Row) -> None:
    """The process of one row: answers ("start",) with what `make` says, and (method, *arguments) with what that method of Answers gives."""
    answers = None
    try:
        while (what := link.recv()) != "stop":
            try:
                if what == "start":
                    answers, said = make(setting)
                else:
                    said = getattr(answers, what[0])(*what[1:])
                link.send((True, said))
            except Exception:  # the benchmark itself says it, with its name
                link.send((False, traceback.format_exc()))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass
