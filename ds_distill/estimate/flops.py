"""Floating-point operations of a step."""

from __future__ import annotations

from transformers import PretrainedConfig

from ds_distill.models.families import family_of_type


def flops_per_token(
    teacher: PretrainedConfig | None, student: PretrainedConfig, length: int, projected: float = 1.0
) -> float:
    """Floating-point operations of one step, a token: teacher forward, student forward and backward, both heads on `projected` of the positions.

    length: tokens a sequence. A product of [n, k] and [k, m] counts 2nkm; softmaxes, norms and embeddings are left out.
    """
    return (_forward(teacher, length, projected) if teacher is not None else 0.0) + 3 * _forward(
        student, length, projected
    )


def _forward(config: PretrainedConfig, length: int, projected: float) -> float:
    depth, _, h, feed_forward, _ = family_of_type(config.model_type).measures(config)
    block = 8 * h * h + 4 * h * feed_forward + 4 * length * h
    return depth * block + projected * (2 * h * config.vocab_size + 2 * h * h)
