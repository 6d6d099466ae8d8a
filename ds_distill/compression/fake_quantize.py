"""Training in the arithmetic of the exported int8 files: what they round is rounded in the forward pass.

The gradient passes through a rounding as if it were not there (Bengio et al. 2013). Weights stay floats,
so an export rounds them as the training did. Scales are computed anew in each step, as the files compute
those of activations at run time. Source: Jacob et al. 2018; for language models Liu et al. 2024 (LLM-QAT).
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.config.quantization import QuantizedFormat
from ds_distill.exporters.int8 import FULL_RANGE, LARGE, REDUCED_RANGE
from ds_distill.kernels.vocabulary_projection import VocabularyProjection
from ds_distill.models.families import get_family

# the largest code of a weight, by the name of the format
STEPS: dict[QuantizedFormat, int] = {"onnx-int8": REDUCED_RANGE, "onnx-int8-vnni": FULL_RANGE}
SMALLEST = 1e-12  # of a scale's numerator, as in the files
LEVELS = 255  # of an activation


def round_weight(weight: Tensor, steps: int) -> Tensor:
    """Return a weight as the files have it: codes from −steps to steps, with a scale for each row.

    Args:
        weight: [out, in], or rows of a table [..., H].
        steps: The largest code.
    """
    exact = weight.detach().float()
    scales = exact.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / steps
    return _pass_through(weight, (exact / scales).round() * scales)


def round_activation(values: Tensor) -> Tensor:
    """Return activations [..., H] as the files have them: 255 steps between the least and the largest of a token."""
    exact = values.detach().float()
    least, most = exact.aminmax(dim=-1, keepdim=True)
    step = (most - least).clamp_min(SMALLEST) * (1 / LEVELS)
    return _pass_through(values, ((exact - least) / step).round().clamp(0, LEVELS) * step + least)


def _pass_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded values, with the gradient of the exact ones."""
    return values + (rounded.to(values.dtype) - values).detach()


def fake_quantize(model: PreTrainedModel, format: QuantizedFormat) -> None:
    """Have a model, in place, compute as its exported file of an int8 format does.

    Parameters and their names stay. Linear layers round their weights and what they read, the vocabulary's table is
    rounded once for lookups and for the product. Attention's own products, norms and activations stay floats.

    Args:
        model: The model.
        format: The format.
    """
    steps = STEPS[format]
    family = get_family(model)
    words = cast(nn.Embedding, model.get_input_embeddings())
    tied = family.has_head(model) and family.get_decoder(model).weight is words.weight
    if tied or words.weight.numel() > LARGE:
        words.__class__, cast(Any, words).steps = _QuantizedEmbedding, steps if tied else FULL_RANGE
    for module in model.modules():
        if type(module) in _QUANTIZED:
            module.__class__, cast(Any, module).steps = _QUANTIZED[type(module)], steps


def unquantize(model: PreTrainedModel) -> None:
    """Have a model, in place, compute in floats again."""
    for module in model.modules():
        if type(module) in _EXACT:
            module.__class__ = _EXACT[type(module)]
            del cast(Any, module).steps


class _QuantizedLinear(nn.Linear):
    steps: int

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 3:  # a head that reads one token: the files leave its product as it is
            return super().forward(input)
        return nn.functional.linear(round_activation(input), round_weight(self.weight, self.steps), self.bias)


class _QuantizedEmbedding(nn.Embedding):
    steps: int

    def forward(self, input: Tensor) -> Tensor:
        return round_weight(super().forward(input), self.steps)


class _QuantizedProjection(VocabularyProjection):
    steps: int

    def forward(self, hidden: Tensor, *losses_of, **options):  # type: ignore[override]
        return self.compute(round_activation(hidden), round_weight(self.weight, self.steps), *losses_of, **options)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _QuantizedLinear,
    VocabularyProjection: _QuantizedProjection,
}
_EXACT: dict[type[nn.Module], type[nn.Module]] = {new: old for old, new in _QUANTIZED.items()} | {
    _QuantizedEmbedding: nn.Embedding
}
