"""Floating-point operations of a training step."""

from __future__ import annotations

from transformers import PretrainedConfig

from ds_distill.models.families import family_of_type


def flops_per_token(
    teacher: PretrainedConfig | None, student: PretrainedConfig, length: int, projected: float = 1.0
) -> float:
    """Return the floating-point operations per token of one training step.

    They cover the teacher's forward, the student's forward and backward, and both heads. A product
    of [n, k] and [k, m] counts 2nkm; softmaxes, norms and embeddings are left out.

    Args:
        teacher: The teacher's config, or None without a teacher.
        student: The student's config.
        length: Tokens per sequence.
        projected: The share of positions that the heads run on.
    """
    return (_forward(teacher, length, projected) if teacher is not None else 0.0) + 3 * _forward(
        student, length, projected
    )


def _forward(config: PretrainedConfig, length: int, projected: float) -> float:
    depth, _, h, feed_forward, _ = family_of_type(config.model_type).measures(config)
    block = 8 * h * h + 4 * h * feed_forward + 4 * length * h
    return depth * block + projected * (2 * h * config.vocab_size + 2 * h * h)
