"""Linear layers of a frozen model whose weights are stored in oneDNN's own layout.

No product has to convert them. On a CPU in bf16 such a product is 4 to 9 % faster, and gelu is
fused into it (docs/benchmarks.md).
"""

import weakref
from typing import cast

import torch
from torch import Tensor, library, nn
from transformers import PreTrainedModel

from ds_distill.models.families import get_family

# (plain, packed) by the address of the plain weight. That weight is kept, so that no other can get
# its address.
_PACKED: dict[int, tuple[Tensor, Tensor]] = {}


def prepack_linears(model: PreTrainedModel) -> None:
    """Give the blocks' linear layers of a frozen bf16 model on a CPU packed copies of their weights.

    The plain weights and their names stay, and must not change any more. Where oneDNN is not built
    in, or has no bf16 on this processor, nothing changes.
    """
    if not _can_pack():
        return
    family = get_family(model)
    for block in family.get_layers(model):
        for linear in block.modules():
            if type(linear) is nn.Linear and linear.weight.dtype == torch.bfloat16:
                linear.__class__, cast(_PackedLinear, linear).post_op = _PackedLinear, "none"
                weight = linear.weight.detach()
                _PACKED[weight.data_ptr()] = weight, torch.ops.mkldnn._reorder_linear_weight(weight)
                weakref.finalize(linear, _PACKED.pop, weight.data_ptr(), None)
        if family.ffn is None:
            continue
        inner_name, activation_name = family.ffn
        inner = block.get_submodule(inner_name)
        if isinstance(inner, _PackedLinear) and family.dims(model.config).activation == "gelu":
            inner.post_op = "gelu"  # applied to the products while they are in fp32
            block.set_submodule(activation_name, nn.Identity().eval())


def _can_pack() -> bool:
    """Return whether oneDNN is built in and has bf16 on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def prepacked_bytes(model: PreTrainedModel) -> int:
    """Return the bytes that the packed copies take in addition to a bf16 model."""
    blocks = get_family(model).get_layers(model)
    return (
        sum(2 * module.weight.numel() for module in blocks.modules() if isinstance(module, nn.Linear))
        if _can_pack()
        else 0
    )


class _PackedLinear(nn.Linear):
    post_op: str

    def forward(self, x: Tensor) -> Tensor:
        return _packed_linear(x, self.weight, self.bias, self.post_op)


# This is an operation of its own because torch.compile does not know tensors in oneDNN's layout.
@library.custom_op("ds_distill::packed_linear", mutates_args=())
def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, post_op: str) -> Tensor:
    packed = _PACKED.get(weight.data_ptr())
    if packed is None:  # this is a copy of the model
        out = nn.functional.linear(x, weight, bias)
        return nn.functional.gelu(out) if post_op == "gelu" else out
    return torch.ops.mkldnn._linear_pointwise(x, packed[1], bias, post_op, [], "none")


@_packed_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, post_op: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
