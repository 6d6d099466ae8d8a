"""The step's matrix products alone, on its exact shapes (a GPU's logits have columns more, see losses.vocabulary.columns, and are faster with them):
as plain products: the engine's CPU teacher has its weights packed for them, which is 4 to 9 % faster in its quarter of the step."""

from collections.abc import Callable

import torch
from transformers import PretrainedConfig

from ds_distill.kernels.fused_linear import columns
from ds_distill.models.families import family_of_type


def products(
    config: PretrainedConfig, sequences: int, length: int, device: str, *, trained: bool
) -> list[tuple[Callable, int]]:
    """(product, how often) of a masked-LM model's forward and, if trained, backward: x · wᵀ, g · w and gᵀ · x of its linear layers, and
    attention's batched [B · heads, L, d]. A product, given a function that makes a tensor of a shape, returns what multiplies. device: its type."""
    depth, heads, hidden, feed_forward, _ = family_of_type(config.model_type).measures(config)
    tokens, vocabulary, size = sequences * length, columns(config.vocab_size, device), hidden // heads
    linears = [
        (hidden, hidden, 4 * depth + 1),
        (hidden, feed_forward, depth),
        (feed_forward, hidden, depth),
        (hidden, vocabulary, 1),
    ]
    found: list[tuple[Callable, int]] = []
    for inner, outer, count in linears:
        found.append((_product((tokens, inner), (outer, inner), (False, True)), count))
        if trained:
            found.append((_product((tokens, outer), (outer, inner), (False, False)), count))
            found.append((_product((tokens, outer), (tokens, inner), (True, False)), count))
    batch = sequences * heads
    scores = _product((batch, length, size), (batch, length, size), (False, True))
    values = _product((batch, length, length), (batch, length, size), (False, False))
    return [*found, (scores, depth * (2 if trained else 1)), (values, depth * (4 if trained else 1))]


def _product(left: tuple, right: tuple, turned: tuple[bool, bool]) -> Callable:
    def prepare(make: Callable) -> Callable[[], object]:
        a, b = (x.transpose(-1, -2) if turn else x for x, turn in zip((make(*left), make(*right)), turned, strict=True))
        out = make(*a.shape[:-1], b.shape[-1])
        multiply = torch.bmm if a.dim() == 3 else torch.mm
        return lambda: multiply(a, b, out=out)

    return prepare


def gemm_contender(
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    sequences: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
):
    """All products of one distillation step, one after another, results into buffers that are there already."""
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
