"""Quantization-aware training, in the arithmetic of the exported files: what they round is rounded in the forward pass.

The gradient passes through a rounding as if it were not there (Bengio et al. 2013). Weights stay floats,
so an export rounds them as the training did. Scales are computed anew in each step, as the int8 files compute
those of activations at run time. Source: Jacob et al. 2018; for language models Liu et al. 2024 (LLM-QAT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.compression.rounding import (
    GROUP,
    LARGE,
    activation_group,
    round_activation,
    round_groups,
    round_in_groups,
    round_signed_weight,
    round_weight,
)
from ds_distill.config.quantization import QuantizedFormat
from ds_distill.kernels.vocabulary_projection import VocabularyProjection
from ds_distill.models.families import get_family
from ds_distill.utils.errors import UserError


@dataclass(frozen=True)
class Arithmetic:
    """What a file rounds.

    Attributes:
        weight: Rounds the weight of a product, or the rows of a table that a product reads too.
        table: Rounds the rows of another table of more than `large` values.
        activation: Rounds what a product reads.
        outputs: The number of outputs from which on a product is rounded.
        dimensions: The number of dimensions of its input from which on a product is rounded.
        large: See `table`.
    """

    weight: Callable[[Tensor], Tensor]
    table: Callable[[Tensor], Tensor]
    activation: Callable[[Tensor], Tensor]
    outputs: int
    dimensions: int
    large: int = LARGE


def _int8(*, paired: bool) -> Arithmetic:
    """Return an int8 file's arithmetic, which leaves the product of a head that reads one token as it is."""
    weight, table = partial(round_weight, paired=paired), partial(round_weight, paired=False)
    return Arithmetic(weight, table, round_activation, outputs=1, dimensions=3)


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _openvino_int8(model: PreTrainedModel) -> Arithmetic:
    """Return the arithmetic of OpenVINO's int8 file of a model, which rounds all tables."""
    products = (module for module in model.modules() if isinstance(module, (nn.Linear, VocabularyProjection)))
    group = activation_group({module.weight.shape[-1] for module in products})
    activation = partial(round_in_groups, group=group)
    return Arithmetic(round_signed_weight, round_signed_weight, activation, outputs=1, dimensions=2, large=0)


# Of a model, the arithmetic of each file.
ARITHMETIC: dict[QuantizedFormat, Callable[[PreTrainedModel], Arithmetic]] = {
    "onnx-int8": lambda model: _int8(paired=True),
    "onnx-int8-vnni": lambda model: _int8(paired=False),
    "openvino-int8": _openvino_int8,
    "onnx-int4": lambda model: Arithmetic(round_groups, round_groups, _as_it_is, outputs=GROUP, dimensions=2),
}


def check_quantizable(linear_rank: int | None, key: str) -> None:
    """Raise UserError, which names the setting `key`, where a model of this rank cannot train as its files compute."""
    if linear_rank is not None:
        raise UserError(
            f"{key}: quantization-aware training does not work with linear_rank = {linear_rank}: the exported file "
            "holds a different factorization of the same weights, which rounds differently; leave one of the two out"
        )


def fake_quantize(model: PreTrainedModel, format: QuantizedFormat) -> None:
    """Have a model, in place, compute as its exported file of a format does.

    Parameters and their names stay. Linear layers round their weights and what they read, the vocabulary's table is
    rounded once for lookups and for the product. Attention's own products, norms and activations stay floats.

    Args:
        model: The model.
        format: The format.
    """
    arithmetic = ARITHMETIC[format](model)
    family = get_family(model)
    words = cast(nn.Embedding, model.get_input_embeddings())
    tied = family.has_head(model) and family.get_decoder(model).weight is words.weight
    for module in model.modules():
        if type(module) is nn.Embedding and not (tied and module is words):
            if module.weight.numel() > arithmetic.large:
                module.__class__, cast(Any, module).round = _QuantizedEmbedding, arithmetic.table
        elif type(module) in _QUANTIZED:
            module.__class__, cast(Any, module).arithmetic = _QUANTIZED[type(module)], arithmetic
    if tied:
        words.__class__, cast(Any, words).round = _QuantizedEmbedding, arithmetic.weight


def unquantize(model: PreTrainedModel) -> None:
    """Have a model, in place, compute in floats again."""
    for module in model.modules():
        if type(module) in _EXACT:
            del module.__dict__["round" if isinstance(module, _QuantizedEmbedding) else "arithmetic"]
            module.__class__ = _EXACT[type(module)]


class _QuantizedLinear(nn.Linear):
    arithmetic: Arithmetic

    def forward(self, input: Tensor) -> Tensor:
        arithmetic = self.arithmetic
        if input.dim() < arithmetic.dimensions or self.out_features < arithmetic.outputs:
            return super().forward(input)
        return nn.functional.linear(arithmetic.activation(input), arithmetic.weight(self.weight), self.bias)


class _QuantizedEmbedding(nn.Embedding):
    round: Callable[[Tensor], Tensor]

    def forward(self, input: Tensor) -> Tensor:
        return self.round(super().forward(input))


class _QuantizedProjection(VocabularyProjection):
    arithmetic: Arithmetic

    def forward(self, hidden: Tensor, *losses_of, **options):  # type: ignore[override]
        arithmetic = self.arithmetic
        return self.compute(arithmetic.activation(hidden), arithmetic.weight(self.weight), *losses_of, **options)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _QuantizedLinear,
    VocabularyProjection: _QuantizedProjection,
}
_EXACT: dict[type[nn.Module], type[nn.Module]] = {new: old for old, new in _QUANTIZED.items()} | {
    _QuantizedEmbedding: nn.Embedding
}
