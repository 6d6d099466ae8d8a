"""What a training step costs on a device: measured rates, and their extrapolation to devices that were not measured.

The cost model has four parts per micro-batch, each of which was measured on an H100:

- matrix products, in proportion to their operations and to the device's peak,
- passes over the vocabulary's logits, in proportion to vocabulary and memory bandwidth,
- passes over hidden states, in proportion to layers, width and memory bandwidth,
- a fixed part for starting kernels and for the optimizer, in proportion to layers.

This module imports no torch.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ds_distill.utils.errors import UserError, did_you_mean


class Device(NamedTuple):
    """A kind of device.

    Args:
        title: What a sentence calls it.
        memory_gb: Memory in 10⁹ bytes.
        dtype: The 16-bit type that a run trains in: bfloat16, or float16 without bf16 units.
        tflops: The peak of dense 16-bit matrix products with sums in fp32, in 10¹² operations per
            second.
        bandwidth: Memory bandwidth in GB per second.
        source: The vendor's document that the last three come from.
        price: A price in US dollars per device and hour.
        price_source: Where the price comes from, or that it is assumed.
    """

    title: str
    memory_gb: float
    dtype: str
    tflops: float
    bandwidth: float
    source: str
    price: float
    price_source: str


DEVICES: Final[dict[str, Device]] = {
    "h100": Device(
        "H100 SXM 80 GB",
        80,
        "bfloat16",
        989.4,
        3350,
        "NVIDIA H100 Tensor Core GPU data sheet, half of the figure with sparsity",
        3.00,
        "the middle of on-demand prices of specialized providers, $2.50 to $3.50 in May 2026, mercatus-ai.com",
    ),
    "h200": Device(
        "H200 SXM 141 GB",
        141,
        "bfloat16",
        989.4,
        4800,
        "NVIDIA H200 Tensor Core GPU data sheet, half of the figure with sparsity",
        4.00,
        "the middle of on-demand prices of specialized providers, $3.50 to $4.50 in May 2026, mercatus-ai.com",
    ),
    "a100": Device(
        "A100 SXM 80 GB",
        80,
        "bfloat16",
        312,
        2039,
        "NVIDIA A100 80GB data sheet",
        1.30,
        "the middle of on-demand prices of specialized providers, $1.10 to $1.50 in May 2026, mercatus-ai.com",
    ),
    "a100-40gb": Device(
        "A100 SXM 40 GB",
        40,
        "bfloat16",
        312,
        1555,
        "NVIDIA A100 40GB data sheet",
        1.30,
        "assumed to be that of the A100 with 80 GB",
    ),
    "l4": Device(
        "L4",
        24,
        "bfloat16",
        121,
        300,
        "NVIDIA L4 data sheet, half of the figure with sparsity",
        0.80,
        "AWS g6.xlarge, on demand in us-east-1",
    ),
    "a10g": Device(
        "A10G", 24, "bfloat16", 70, 600, "NVIDIA A10G data sheet", 1.01, "AWS g5.xlarge, on demand in us-east-1"
    ),
    "t4": Device("T4", 16, "float16", 65, 320, "NVIDIA T4 data sheet", 0.53, "AWS g4dn.xlarge, on demand in us-east-1"),
    "rtx-4090": Device(
        "RTX 4090",
        24,
        "bfloat16",
        165.2,
        1008,
        "NVIDIA Ada GPU architecture white paper, with sums in fp32",
        0.60,
        "assumed",
    ),
}


class Measurement(NamedTuple):
    """The measured rate of a training step: BERT-base to DistilBERT, KL over all tokens, dropout 0.1, one device.

    Args:
        device: What it ran on.
        sequences: Sequences per step, which has one micro-batch.
        length: Tokens per sequence.
        tokens_per_second: The step's rate.
        products_tokens_per_second: The rate of the step's matrix products alone, in the same run.
        date: The day.
        report: The folder with the report.
    """

    device: str
    sequences: int
    length: int
    tokens_per_second: float
    products_tokens_per_second: float | None
    date: str
    report: str

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.sequences * self.length


_REPORTS: Final = "docs/results/benchmarks/"
_CPU: Final = "two cores of an AMD EPYC (Zen 4, AVX512-BF16)"
H100_SMALL: Final = Measurement("h100", 128, 128, 504_018.2, 825_922.6, "2026-11-26", _REPORTS + "h100-2026-11-26")
H100_LARGE: Final = Measurement("h100", 512, 128, 568_287.2, None, "2026-11-26", _REPORTS + "h100-2026-11-26")
CPU_SHORT: Final = Measurement(_CPU, 16, 128, 544.1, 622.5, "2026-11-26", _REPORTS + "training-base-128")
CPU_LONG: Final = Measurement(_CPU, 4, 512, 490.9, 583.1, "2026-11-26", _REPORTS + "training-base-512")
MEASUREMENTS: Final = (H100_SMALL, H100_LARGE, CPU_SHORT, CPU_LONG)


class Work(NamedTuple):
    """What a training step does per token.

    Args:
        flops: Operations of the matrix products.
        logits: Entries of the vocabulary for which teacher and student are compared.
        layers: Layers that a token passes: the teacher's once, the student's three times.
        hidden: The same layers, each times its hidden size.
    """

    flops: float
    logits: float
    layers: float
    hidden: float


MEASURED_WORK: Final = Work(628.7e6, 30_522, 12 + 3 * 6, (12 + 3 * 6) * 768)  # BERT-base to DistilBERT at 128 tokens
# Seconds of the vocabulary loss's kernel in a step of H100_SMALL, from the profile in its report.
VOCABULARY_SECONDS: Final = 2.782e-3

# A micro-batch of n tokens takes _FIXED + n · _PER_TOKEN seconds on the H100. Two sizes were measured.
_SECONDS = {measured: measured.tokens / measured.tokens_per_second for measured in (H100_SMALL, H100_LARGE)}
_PER_TOKEN = (_SECONDS[H100_LARGE] - _SECONDS[H100_SMALL]) / (H100_LARGE.tokens - H100_SMALL.tokens)
_FIXED = _SECONDS[H100_SMALL] - H100_SMALL.tokens * _PER_TOKEN
_PRODUCTS = 1 / (H100_SMALL.products_tokens_per_second or 0)
_LOGITS = VOCABULARY_SECONDS / H100_SMALL.tokens
_HIDDEN = _PER_TOKEN - _PRODUCTS - _LOGITS


class Rate(NamedTuple):
    """The rate of one device.

    Args:
        tokens_per_second: Tokens per second.
        fixed_share: The share of the time that does not depend on the number of tokens.
    """

    tokens_per_second: float
    fixed_share: float


def estimate_rate(device: Device, work: Work, tokens: int) -> Rate:
    """Return the rate of a device at micro-batches of `tokens` tokens, scaled from what was measured on the H100."""
    reference = DEVICES["h100"]
    compute, memory = reference.tflops / device.tflops, reference.bandwidth / device.bandwidth
    per_token = (
        _PRODUCTS * compute * work.flops / MEASURED_WORK.flops
        + _LOGITS * memory * work.logits / MEASURED_WORK.logits
        + _HIDDEN * memory * work.hidden / MEASURED_WORK.hidden
    )
    fixed = _FIXED * work.layers / MEASURED_WORK.layers
    seconds = fixed + tokens * per_token
    return Rate(tokens / seconds, fixed / seconds)


def is_measured(name: str) -> bool:
    """Return whether this project has measured a training step on the device of this name."""
    return any(measurement.device == name for measurement in MEASUREMENTS)


def find_device(name: str) -> Device:
    """Return the device of this name; UserError, which names the known ones, where it is unknown."""
    if name.lower() not in DEVICES:
        known = ", ".join(f"{key} (measured)" if is_measured(key) else key for key in DEVICES)
        raise UserError(
            f"--gpu {name}: not a known GPU; give one of {known}, or leave --gpu out and give --memory_gib and "
            f"--tokens_per_second{did_you_mean(name.lower(), DEVICES, cutoff=0.6)}"
        )
    return DEVICES[name.lower()]
