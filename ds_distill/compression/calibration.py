"""What pruning has to know of a text: the moments of what the layers' output products read, and what their norms do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.data.batch import Batch
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import run_encoder
from ds_distill.models.layer_shapes import LayerShape

PARTS = LayerShape._fields  # "heads" and "feed_forward", in the order of Family.outputs


class Moments:
    """What the output product of one part of a layer has read, and what the norm after it has made of its errors.

    Sums are in fp64, on the CPU.
    """

    def __init__(self, inner: int):
        """Make moments of no tokens.

        Args:
            inner: The number of inputs.
        """
        self.count = 0
        self._total = torch.zeros(inner, dtype=torch.float64)
        self._products = torch.zeros(inner, inner, dtype=torch.float64)
        self._gain = torch.zeros((), dtype=torch.float64)

    def add_inputs(self, inputs: Tensor) -> None:
        """Count the product's inputs [tokens, in], of any float dtype."""
        # A batch is multiplied in the inputs' own dtype, which takes half the time of fp64.
        self._products += (inputs.T @ inputs).double().cpu()
        self._total += inputs.sum(0, dtype=torch.float64).cpu()
        self.count += len(inputs)

    def add_sums(self, sums: Tensor) -> None:
        """Count what the norm reads [tokens, out]: it divides by the standard deviation of each token."""
        self._gain += (1 / sums.double().var(-1, correction=0).clamp_min(1e-12)).sum().cpu()

    @property
    def mean(self) -> Tensor:
        """The mean input, [in]."""
        return self._total / self.count

    @property
    def covariance(self) -> Tensor:
        """The inputs' covariance, [in, in]."""
        return self._products / self.count - torch.outer(self.mean, self.mean)

    @property
    def gain(self) -> Tensor:
        """The mean over tokens of 1 / variance of what the norm reads, a scalar."""
        return self._gain / self.count


@torch.no_grad()
def collect_moments(model: PreTrainedModel, batches: Iterable[Batch]) -> dict[tuple[int, str], Moments]:
    """Return the moments of each layer's parts, by (layer, part), over the real tokens of batches.

    A part that an earlier cut has left without inputs has none.

    Args:
        model: A masked-LM model or a bare encoder, in eval mode, of a family that can be pruned.
        batches: Text.
    """
    family, found, mask = get_family(model), dict[tuple[int, str], Moments](), _Mask()
    assert family.outputs
    handles = []
    for number, layer in enumerate(family.get_layers(model)):
        for part, name, norm in zip(PARTS, family.outputs, family.output_norms, strict=True):
            linear = layer.get_submodule(name)
            if isinstance(linear, nn.Linear):
                moments = found[number, part] = Moments(linear.in_features)
                handles.append(linear.register_forward_pre_hook(mask.hook(moments.add_inputs)))
                handles.append(layer.get_submodule(norm).register_forward_pre_hook(mask.hook(moments.add_sums)))
    try:
        for batch in batches:
            mask.real = batch.token_mask
            run_encoder(model, batch.input_ids, batch.attention_mask, batch.cu_seqlens)
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Mask:
    """The mask of the batch at hand, [B, L] bool, true on real tokens; None where all are real."""

    def __init__(self) -> None:
        self.real: Tensor | None = None

    def hook(self, add: Callable[[Tensor], None]) -> Callable[[Any, tuple[Tensor]], None]:
        """Return a hook that hands a module's input [B, L, any] to `add`, without padding."""

        def take(module: Any, inputs: tuple[Tensor]) -> None:
            values = inputs[0].flatten(0, -2)
            add(values if self.real is None else values[self.real.flatten()])

        return take
