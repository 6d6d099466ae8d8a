"""Compile the Triton kernel of the vocabulary loss for an H100, without needing one.

The interpreter does not notice what the compiler refuses.
"""

import itertools

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ds_distill.kernels.row_losses_triton import BLOCK, WARPS, _kernel

POINTERS = {"target_at": "*i64", "kl_mask_at": "*u8", "mlm_mask_at": "*u8"}
NUMBERS = {"width": "i32", "z_row": "i32", "t_row": "i32", "grad_row": "i32", "temperature": "fp32"}

for dtype, has_teacher, wanted in itertools.product(("fp32", "bf16", "fp16"), (True, False), (True, False)):
    logits = dict.fromkeys(("z_at", "t_at", "grad_at"), f"*{dtype}")
    flags = {
        "taught": has_teacher,
        "masked": True,
        "biased": True,
        "t_biased": has_teacher,
        "wanted": wanted,
        "block": BLOCK,
    }
    kinds = (
        dict.fromkeys((name for name in _kernel.arg_names if name.endswith("_at")), "*fp32")
        | logits
        | POINTERS
        | NUMBERS
    )
    source = ASTSource(_kernel, kinds | dict.fromkeys(flags, "constexpr"), constexprs=flags)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS})
    assert compiled.asm["cubin"]
    print(dtype, has_teacher, wanted)
