"""Measure what rounding does to a model's top-1 predictions, whatever the 8-bit products run on.

    python -m benchmarks.analysis.quantization_error --model DIR --text FILE

The result bounds how far any 8-bit product can go. The model runs in fp32 in PyTorch, with the
operands of its products rounded as in int8 (Dettmers et al. 2022, section 2), and once in bf16. Its
top-1 predictions at masked tokens are compared with its own in fp32. The last
line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness.cli import count, user_errors
from ds_distill.compression.rounding import round_weight
from ds_distill.exporters.model import ExportModel, load_source
from ds_distill.exporters.parity import MARGIN_NATS, Batch, agreement_shares, get_top1, text_batches
from ds_distill.reporting.tables import table
from ds_distill.utils.console import progress


def symmetric(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Round x to 127 steps in each direction of the largest value along `dim`."""
    step = x.abs().amax(dim, keepdim=True).clamp_min(1e-12) / 127
    return (x / step).round() * step


def asymmetric(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Round x to 255 steps from the least to the largest value along `dim`, one of which is 0."""
    low, high = x.amin(dim, keepdim=True).clamp_max(0), x.amax(dim, keepdim=True).clamp_min(0)
    step = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / step).round()
    return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step


def grouped(x: Tensor, size: int) -> Tensor:
    """Round x symmetrically, with one scale for each `size` values of the last axis."""
    return symmetric(x.unflatten(-1, (-1, size)), -1).flatten(-2)


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "per column": lambda w: symmetric(w, 1),
    "per column, neighbors fit together": lambda w: round_weight(w, paired=True),
    "per 32 values": lambda w: grouped(w, 32),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "per tensor": lambda x: asymmetric(x, tuple(range(x.dim()))),
    "per token": lambda x: symmetric(x, -1),
    "per token, asymmetric": lambda x: asymmetric(x, -1),
    "per 32 values": lambda x: grouped(x, 32),
}
ROWS = [
    (None, None),
    *((w, None) for w in WEIGHTS),
    *((None, a) for a in ACTIVATIONS),
    *(("per column", a) for a in ACTIVATIONS),
    ("per column, neighbors fit together", "per token, asymmetric"),
    ("per 32 values", "per 32 values"),
]


def rounded(model: nn.Module, weights: str | None, activations: str | None) -> list:
    """Round the operands of every linear layer of `model` in place, and return the hooks."""
    hooks = []
    for layer in [part for part in model.modules() if isinstance(part, nn.Linear)]:
        if weights:
            layer.weight = nn.Parameter(
                WEIGHTS[weights](layer.weight.data), requires_grad=False
            )  # a new parameter, so that an embedding tied to the old one stays as it is
        if activations:
            hooks.append(
                layer.register_forward_pre_hook(lambda _, inputs: (ACTIVATIONS[activations](inputs[0]), *inputs[1:]))
            )
    return hooks


@torch.inference_mode()
def compute_logits(source: ExportModel, batches: list[Batch], what: str) -> np.ndarray:
    """Return the logits at masked tokens, fp32 [masked tokens, V]."""
    parts = []
    with progress(len(batches), what, "batch") as bar:
        for batch in batches:
            logits = source.model(**{name: torch.from_numpy(value) for name, value in batch.inputs.items()}).logits
            parts.append(logits[torch.from_numpy(batch.at)].float().numpy())
            bar.update()
    return np.concatenate(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.quantization_error",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="Hugging Face folder with a masked-LM head")
    parser.add_argument(
        "--text", nargs="+", default=[], help="text, as for ds-distill prepare (default: the package's sample)"
    )
    parser.add_argument("--sequences", type=count, default=128, help="number of sequences of the text (default 128)")
    args = parser.parse_args()
    with user_errors("benchmarks.analysis.quantization_error"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    source = load_source(args.model, "masked-lm")
    # Batches have one sequence, since a scale per tensor depends on what else is in the tensor.
    batches = text_batches(source, args.text, sequences=args.sequences, batch=1)
    reference = compute_logits(source, batches, "fp32")
    choice, clear = get_top1(reference)
    best = np.partition(reference, -2, axis=-1)[:, -2:]
    margins = {
        f"{100 * share:g} %": float(np.quantile(best[:, 1] - best[:, 0], share))
        for share in (0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
    }
    rows = []
    for weights, activations in ROWS:
        source = load_source(args.model, "masked-lm")
        if weights or activations:
            rounded(source.model, weights, activations)
        else:
            source.model.bfloat16()
        name = (
            f"weights: {weights or 'fp32'}; activations: {activations or 'fp32'}" if weights or activations else "bf16"
        )
        logits = compute_logits(source, batches, name)
        same = logits.argmax(-1) == choice
        error = float(np.sqrt(np.mean((logits - reference) ** 2)))
        rows.append({"rounding": name, "error": error} | agreement_shares(same, clear))
    columns = {
        "rounding": "scales of the rounded operands",
        "agreement": "top-1 agreement with fp32",
        "clear_agreement": f"agreement where fp32 leads by {MARGIN_NATS} nats",
        "error": "RMS error of a logit",
    }
    shares = ("agreement", "clear_agreement")
    print(
        table(
            [
                row
                | {key: f"{100 * row[key]:.2f} %" for key in shares if key in row}
                | {"error": f"{row['error']:.4f}"}
                for row in rows
            ],
            columns,
        )
    )
    print(
        f"\n{len(choice):,} masked tokens; the top-1 prediction in fp32 leads clearly in {100 * clear.mean():.0f} %. "
        "The two best logits of a token differ by less than "
        + ", ".join(f"{value:.4f} for {share}" for share, value in margins.items())
        + "\n"
    )
    print(json.dumps({"positions": len(choice), "clear_share": float(clear.mean()), "margins": margins, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
