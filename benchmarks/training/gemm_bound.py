"""The matrix products of a step alone, on its exact shapes.

On a GPU, the logits have extra columns (see kernels.fused_linear.columns), which make the products
faster. All products are plain ones. The engine's CPU teacher has its weights packed, which makes
its quarter of the step 4 to 9 % faster.
"""

from collections.abc import Callable

import torch
from transformers import PretrainedConfig

from ds_distill.estimate.flops import linear_shapes
from ds_distill.kernels.fused_linear import padded_vocab_size
from ds_distill.models.families import get_family_by_type


def products(
    config: PretrainedConfig, sequences: int, length: int, device: str, *, trained: bool
) -> list[tuple[Callable, int]]:
    """Return (product, how often it runs) for a masked-LM model's forward pass and, if trained, its backward pass.

    The products are x · wᵀ, g · w and gᵀ · x of the linear layers, and attention's batched
    products, [B · heads, L, d].

    Args:
        config: The model's configuration.
        sequences: The batch size B.
        length: The sequence length L.
        device: The device's type.
        trained: Whether to include the backward pass.

    Returns:
        A list of pairs. Each product takes a function that makes a tensor of a given shape, and
        returns the function that multiplies.
    """
    dims = get_family_by_type(config.model_type).dims(config)
    tokens, size = sequences * length, dims.width // dims.heads
    pairs: list[tuple[Callable, int]] = []
    encoder, head = linear_shapes(config)
    for (inner, outer), count in (encoder + head).items():
        if outer == config.vocab_size:
            outer = padded_vocab_size(config.vocab_size, device)
        pairs.append((_product((tokens, inner), (outer, inner), (False, True)), count))
        if trained:
            pairs.append((_product((tokens, outer), (outer, inner), (False, False)), count))
            pairs.append((_product((tokens, outer), (tokens, inner), (True, False)), count))
    batch = sequences * dims.heads
    scores = _product((batch, length, size), (batch, length, size), (False, True))
    values = _product((batch, length, length), (batch, length, size), (False, False))
    return [*pairs, (scores, dims.depth * (2 if trained else 1)), (values, dims.depth * (4 if trained else 1))]


def _product(left: tuple, right: tuple, turned: tuple[bool, bool]) -> Callable:
    def prepare(make: Callable) -> Callable[[], object]:
        a, b = (x.transpose(-1, -2) if turn else x for x, turn in zip((make(*left), make(*right)), turned, strict=True))
        out = make(*a.shape[:-1], b.shape[-1])
        multiply = torch.bmm if a.dim() == 3 else torch.mm
        return lambda: multiply(a, b, out=out)

    return prepare


def gemm_step(
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    sequences: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
):
    """Return a function that runs all products of one distillation step, one after another.

    The results go to preallocated buffers.
    """
    make = lambda *shape: torch.randn(*shape, device=device).to(dtype)  # noqa: E731
    wanted = [
        *products(teacher, sequences, length, device.type, trained=False),
        *products(student, sequences, length, device.type, trained=True),
    ]
    jobs = [(prepare(make), count) for prepare, count in wanted]

    def run() -> None:
        with torch.no_grad():
            for job, count in jobs:
                for _ in range(count):
                    job()

    return run
