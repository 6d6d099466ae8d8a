"""Embeddings in two factors: a table of vectors that are narrower than the layers, and a projection on their width.

The projection is that of the largest principal components of the embeddings, each row of a table weighted by how often
text reads it. A LayerNorm lies between the factors, where a BERT has one behind its embeddings: an isometry that takes
equal coordinates to equal coordinates commutes with subtracting the mean, so only what the projection drops is lost.

Source: Lan et al. 2020 (ALBERT), section 3.1, for the factors; the start is the truncated singular value decomposition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

LINEAR = 3.0  # where GELU is nearly linear for values that vary by about 1
RIDGE = 1e-4  # of the mean of the diagonal


class Head(NamedTuple):
    """A masked-LM head before its decoder: a linear layer, an activation, and a norm.

    Attributes:
        dense: [D, H].
        bias: [D].
        scale: [D], the weight of the norm.
        shift: [D], its bias.
    """

    dense: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor


class Embeddings(NamedTuple):
    """The embeddings of an encoder: sums of rows of tables, a LayerNorm over them, and a projection on the layers.

    Attributes:
        tables: Words [V, D], positions [P, D] and token types [K, D], in this order.
        scale: [D], the weight of the norm.
        shift: [D], its bias.
        projection: [H, D].
        bias: [H].
    """

    tables: tuple[Tensor, Tensor, Tensor]
    scale: Tensor
    shift: Tensor
    projection: Tensor
    bias: Tensor


def principal_isometry(tables: tuple[Tensor, Tensor, Tensor], size: int, token_counts: Tensor | None) -> Tensor:
    """Return the isometry [D, size], in float64, on what `size` coordinates keep of embeddings.

    Its columns span equal coordinates, which it takes to equal coordinates, and the size - 1 largest principal
    components of what is left of the tables' rows without their mean. So for any vector z it commutes with subtracting
    the mean, and of the words' table it is the best of its kind: it minimizes Σ f |C(w - T Tᵀ w)|², C the subtraction.

    Args:
        tables: As in `Embeddings`.
        size: The number of columns, 2 to D.
        token_counts: How often text has each word, [V] or shorter; None for equally often. 1 is added. Positions are
            weighted as in text of full sequences, and the first token type as its only one.
    """
    words, positions, types = (table.double() for table in tables)
    counts = words.new_ones(len(words))
    if token_counts is not None:
        counts[: len(token_counts)] += token_counts.to(counts)
    total = counts.sum()
    width = words.shape[1]
    gram = words.T @ (words * counts[:, None])
    if len(positions):
        gram += positions.T @ positions * (total / len(positions))
    if len(types):
        gram += torch.outer(types[0], types[0]) * total
    centered = _zero_mean_basis(width)
    _, vectors = torch.linalg.eigh(centered.T @ gram @ centered)  # ascending
    kept = vectors.flip(1)[:, : size - 1]
    # the sign of an eigenvector is arbitrary, and every rank must find the same
    kept = kept * kept.gather(0, kept.abs().argmax(0, keepdim=True)).sign()
    means = words.new_full((width, size), 1 / math.sqrt(width * size))
    return centered @ kept @ _zero_mean_basis(size).T + means


def _zero_mean_basis(size: int) -> Tensor:
    """Return an orthonormal basis [size, size - 1], float64, of the vectors whose coordinates sum to 0 (Helmert's)."""
    steps = torch.arange(1, size, dtype=torch.float64)
    basis = torch.ones(size, size - 1, dtype=torch.float64).triu()
    basis.diagonal(-1).copy_(-steps)
    return basis / (steps * (steps + 1)).sqrt()


def factorize_embeddings(whole: Embeddings, isometry: Tensor) -> Embeddings:
    """Return embeddings of the isometry's width that compute what `whole` does, but for what the isometry drops.

    The tables are scaled so that the variance of their sums, and so the effect of the norm's eps, stays as it is.

    Args:
        whole: The embeddings, D wide.
        isometry: T [D, E], from `principal_isometry`.
    """
    scale = _scale(isometry)
    projection = whole.projection.double()
    words, positions, types = (scale * table.double() @ isometry for table in whole.tables)
    return Embeddings(
        (words, positions, types),
        torch.ones(isometry.shape[1]),
        torch.zeros(isometry.shape[1]),
        projection * whole.scale.double() @ isometry / scale,
        whole.bias.double() + projection @ whole.shift.double(),
    )


def factorize_head(whole: Head, isometry: Tensor, hidden: Tensor | None = None, output: Tensor | None = None) -> Head:
    """Return a head whose decoder reads E coordinates.

    An activation lies between, so it only resembles `whole`. Where outputs on some text are given, it is fitted to them
    by least squares: as linear layer and norm, since the activation is a GELU, which is nearly linear at inputs as
    large as those that the bias moves it to.

    Args:
        whole: The head, D wide.
        isometry: T [D, E].
        hidden: Hidden states [N, H] that the head reads, or None.
        output: [N, D], what it makes of them.
    """
    scale = _scale(isometry)
    if hidden is None or output is None:
        return Head(
            isometry.T @ whole.dense.double(),
            isometry.T @ whole.bias.double(),
            torch.ones(isometry.shape[1]) / scale,
            isometry.T @ whole.shift.double() / scale,
        )
    inputs = nn.functional.pad(hidden.double(), (0, 1), value=1.0)
    wanted = output.double() @ isometry / scale
    gram = inputs.T @ inputs
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    fitted = torch.linalg.solve(gram + ridge, inputs.T @ wanted).T
    # the norm takes away the mean of the coordinates, and their common scale
    fitted = fitted - fitted.mean(0)
    fitted = fitted / (inputs @ fitted.T).square().mean().sqrt()
    dense, bias = fitted[:, :-1], fitted[:, -1] + LINEAR
    normed = nn.functional.layer_norm(nn.functional.gelu(hidden.double() @ dense.T + bias), isometry.shape[1:])
    weight = ((normed - normed.mean(0)) * (wanted - wanted.mean(0))).mean(0) / normed.var(0, correction=0)
    return Head(dense, bias, weight, wanted.mean(0) - weight * normed.mean(0))


def _scale(isometry: Tensor) -> float:
    """Return √(E/D)."""
    width, size = isometry.shape
    return math.sqrt(size / width)
