"""A description of this machine: versions, devices, and the fused kernels that a run would use here.

Each kernel comes with the reason why it is used or not.
"""

import torch

from ds_distill.builds.deepspeed_extensions import is_built
from ds_distill.builds.fused_adam import apex_unavailable_reason, build_unavailable_reason
from ds_distill.models.precision import choose_cpu_dtype
from ds_distill.models.varlen_attention import varlen_unavailable_reason
from ds_distill.training.compile import compile_unavailable_reason, triton_unavailable_reason
from ds_distill.utils.machine import cores, package_versions
from ds_distill.utils.memory import memory_limit

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "jsonargparse",
    "tensorboard",
    "apex",
    "triton",
)


def describe() -> dict:
    """Return the versions, devices and kernels of this machine.

    Nothing is compiled, and the network is not used.

    Returns:
        {"versions": {package: version or None}, "devices": {…}, "kernels": [{"kernel", "active",
        "why"}]}.
    """
    return {"versions": _versions(), "devices": _devices(), "kernels": kernels()}


def _versions() -> dict[str, str | None]:
    return {"python": None, **dict.fromkeys(PACKAGES)} | package_versions(PACKAGES)


def _devices() -> dict:
    gpus = (
        [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return {
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "cpu_cores": cores(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_precision": str(choose_cpu_dtype()).removeprefix("torch."),
        "memory_gib": round(memory_limit() / 2**30, 1),
    }


def kernels() -> list[dict]:
    """Return each fused kernel, whether a run here uses it, and why or why not."""
    cuda = torch.cuda.is_available()
    no_build, no_compile = build_unavailable_reason(), compile_unavailable_reason()
    device = torch.device("cuda" if cuda else "cpu")
    no_varlen, no_triton = varlen_unavailable_reason(device, torch.bfloat16), triton_unavailable_reason(device)
    adam = no_build or (
        "already compiled" if is_built("fused_adam") else "the first run compiles it, which takes about a minute"
    )
    return [
        _row("DeepSpeed FusedAdam", no_build is None, adam + ("" if cuda else "; uses its C++ backend on the CPU")),
        _row(
            "torch fused AdamW",
            no_build is not None,
            "used if DeepSpeed's cannot be compiled; select it with training.optimizer = torch",
        ),
        _row(
            "apex FusedAdam", False, apex_unavailable_reason() or "installed; select it with training.optimizer = apex"
        ),
        _row(
            "apex FusedLAMB, FusedLayerNorm",
            False,
            apex_unavailable_reason() or "installed, but not used, because torch's LayerNorm is fused too",
        ),
        _row(
            "fused vocabulary loss",
            True,
            "computes the loss in chunks of tokens" + (", with 16-bit GEMMs and fp32 results" if cuda else ""),
        ),
        _row(
            "torch.compile",
            no_compile is None,
            no_compile
            or "fuses operations between matrix products in runs that repay the compilation (training.compile)",
        ),
        _row(
            "Triton",
            no_triton is None,
            no_triton or "runs the vocabulary loss on a GPU, and the kernels that torch.compile generates",
        ),
        _row(
            "scaled-dot-product attention",
            True,
            "torch's flash kernel" + ("" if cuda else " for the CPU; with attention dropout torch's unfused one"),
        ),
        _row(
            "varlen attention",
            no_varlen is None,
            (f"{no_varlen}: a mask keeps" if no_varlen else "the kernel keeps") + " the documents of a packed "
            "block apart (data.attend_across_documents = false)"
            + ("" if no_varlen else "; a student with attention dropout uses a mask instead"),
        ),
        _row(
            "DeepSpeedTransformerLayer",
            False,
            "not used: CUDA kernels from 2020 for BERT training, without flash attention",
        ),
    ]


def _row(kernel: str, active: bool, why: str) -> dict:
    return {"kernel": kernel, "active": active, "why": why}
