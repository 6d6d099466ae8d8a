"""Compile the Triton kernels of the losses between relations for an H100, without needing one.

The interpreter does not notice what the compiler refuses, or what does not fit a multiprocessor.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ds_distill.kernels.relations_triton import BLOCKS, STAGES, WARPS, _gradient_kernel, _normalizer_kernel

SHARED_MEMORY = 227 * 1024  # bytes that a block of threads may have on an H100
KINDS = {"documents_at": "*i64", "scale": "fp32", "padding": "i64"}


def compiled(kernel, tensors: dict[str, str], flags: dict) -> None:
    """Compile a kernel; arguments that are not mentioned are fp32 pointers, or i32."""
    kinds = {name: "*fp32" if name.endswith("_at") else "i32" for name in kernel.arg_names if name not in flags}
    source = ASTSource(kernel, kinds | KINDS | tensors | dict.fromkeys(flags, "constexpr"), constexprs=flags)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": WARPS, "num_stages": STAGES})
    assert made.asm["cubin"]
    assert made.metadata.shared <= SHARED_MEMORY
    print(kernel.__name__, *tensors.values(), *flags.values(), made.metadata.shared)


for width, dtype, t_dtype, teachers, squared, per_token, by_rows, by_columns in (
    (16, "fp32", "fp32", 1, False, False, True, True),
    (64, "bf16", "fp16", 2, False, False, True, False),
    (64, "fp16", "fp16", 1, False, False, False, True),
    (256, "fp32", "bf16", 1, True, False, True, False),
    (64, "bf16", "bf16", 1, True, True, True, False),
    (64, "bf16", "fp16", 1, True, True, False, True),
):
    rows, columns = next(sizes for widest, sizes in BLOCKS.items() if width <= widest)
    sizes = {"block_rows": rows, "block_columns": columns, "block_width": width, "interpreted": False}
    student = {"x_at": f"*{dtype}", "y_at": f"*{dtype}"}
    if not by_columns:
        compiled(_normalizer_kernel, student, sizes)
    flags = {"teachers": teachers, "squared": squared, "per_token": per_token, "wanted": True}
    flags |= {"by_rows": by_rows, "by_columns": by_columns}
    tensors = student | {"t_x_at": f"*{t_dtype}", "t_y_at": f"*{t_dtype}", "d_at": f"*{dtype}"}
    compiled(_gradient_kernel, tensors, flags | {"t_block_width": width} | sizes)
