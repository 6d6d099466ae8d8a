"""Linear layers of a frozen model whose weights lie in oneDNN's own layout, so that no product has to bring them into it: on a CPU in bf16 such a
product is 4 to 9 % faster (docs/PERFORMANCE.md)."""

import weakref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.models.families import family_of

# by the address of the plain weight, which is kept, so that no other can come to lie there: (plain, packed)
_PACKED: dict[int, tuple[Tensor, Tensor]] = {}


def pack_linears(model: PreTrainedModel) -> None:
    """Give the blocks' linear layers of a frozen bf16 model on a CPU packed copies of their weights; the plain weights and their names stay, and must
    not change any more. Where oneDNN is not built in, or has no bf16 on this processor, nothing changes."""
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    for linear in family_of(model).part(model, "layers").modules():
        if type(linear) is nn.Linear and linear.weight.dtype == torch.bfloat16:
            linear.__class__ = _PackedLinear
            weight = linear.weight.detach()
            _PACKED[weight.data_ptr()] = weight, torch.ops.mkldnn._reorder_linear_weight(weight)
            weakref.finalize(linear, _PACKED.pop, weight.data_ptr(), None)


class _PackedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _packed_linear(x, self.weight, self.bias)


# an operation of its own, since torch.compile does not know tensors in oneDNN's layout
@torch.library.custom_op("ds_distill::packed_linear", mutates_args=())
def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found = _PACKED.get(weight.data_ptr())
    if found is None:  # a copy of the model
        return nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, found[1], bias, "none", [], "")


@_packed_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
