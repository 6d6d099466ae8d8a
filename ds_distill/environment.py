"""A description of this machine: versions, devices, and the fused kernels that a run would use here.

Each kernel comes with the reason why it is used or not.
"""

import importlib.metadata
import platform

import torch

from ds_distill.builds.deepspeed_extensions import is_built
from ds_distill.builds.fused_adam import apex_unavailable_reason, build_unavailable_reason
from ds_distill.data.prepare import cores
from ds_distill.models.attention import varlen_unavailable_reason
from ds_distill.models.precision import choose_cpu_dtype
from ds_distill.training.compile import compile_unavailable_reason, triton_unavailable_reason
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
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


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
        "compiled, in the cache" if is_built("fused_adam") else "will be compiled by the first run, about a minute"
    )
    return [
        _row("DeepSpeed FusedAdam", no_build is None, adam + ("" if cuda else "; its C++ body on the CPU")),
        _row(
            "torch fused AdamW",
            no_build is not None,
            "takes over where DeepSpeed's cannot be built; training.optimizer = torch chooses it",
        ),
        _row("apex FusedAdam", False, apex_unavailable_reason() or "installed; training.optimizer = apex chooses it"),
        _row(
            "apex FusedLAMB, FusedLayerNorm",
            False,
            apex_unavailable_reason() or "installed; not used: torch's LayerNorm is fused too",
        ),
        _row("fused vocabulary loss", True, "chunk by chunk" + (", GEMMs in 16 bit with fp32 results" if cuda else "")),
        _row(
            "torch.compile",
            no_compile is None,
            no_compile or "what lies between matrix products, where a run earns it back (training.compile)",
        ),
        _row(
            "Triton",
            no_triton is None,
            no_triton or "the vocabulary loss's kernel on a GPU, and what torch.compile writes its own with",
        ),
        _row(
            "scaled-dot-product attention",
            True,
            "torch's flash kernel" + ("" if cuda else " for the CPU; with dropout its plain one"),
        ),
        _row(
            "varlen attention",
            no_varlen is None,
            (f"{no_varlen}: a mask tells" if no_varlen else "the kernel tells") + " the documents of a packed "
            "block apart (data.attend_across_documents = false)"
            + ("" if no_varlen else "; a student with attention dropout has the mask"),
        ),
        _row(
            "DeepSpeedTransformerLayer",
            False,
            "CUDA kernels of 2020 for BERT training, without today's flash attention: not used",
        ),
    ]


def _row(kernel: str, active: bool, why: str) -> dict:
    return {"kernel": kernel, "active": active, "why": why}
