"""What a quantized file rounds: the numbers that its writer and the training in its arithmetic share.

ONNX Runtime's int8 files have a scale for each row of a weight, and activations of 255 steps per token. Without VNNI
(vpdpbusd), x86 adds the products of two neighbors of a row in 16 bits (vpmaddubsw), silently saturated. 2 · 255 · 127
does not fit into them, 255 · 128 does. A file that must be right everywhere is therefore `paired`: two neighbors of one
sign have codes of at most 128 together. Large weights are few, and rarely neighbors of one sign, so rows lose only a
fifth of their steps.

OpenVINO's int8 files have a scale for each row of a weight or a table, an fp16 number, with whose sign the largest
value has the code −128. Activations of a token have codes around zero, of ±127, in groups with a scale of their own.
OpenVINO rounds activations on processors with VNNI or AMX; on others the file computes with them as they are.

Four-bit files have a scale and a zero point for each group of a weight's row, and exact activations. A scale is a byte
times the row's power of two, which every runtime's number format holds exactly, and which takes half the bytes of fp16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

LARGEST = 127  # int8 code of a weight
PAIR = 128  # of the codes of two neighbors of one sign together, where a file is paired
LARGE = 1_000_000  # lookup tables of more values are rounded: vocabularies are, positions are not
SMALLEST = 1e-12  # of an int8 scale's numerator
LEVELS = 255  # of an activation
# OpenVINO scales a token's activations in groups of at most this size; 128 takes 1.2 times as long,
# 32 half as long again.
ACTIVATION_GROUP = 384

GROUP = 32  # values of a weight that share a four-bit scale
LARGEST_CODE = 15
LARGEST_SCALE = 255  # in units of the row's step
# exponents of a step with which each scale is a number of fp16
EXPONENTS = (-24, 7)


class Groups(NamedTuple):
    """A weight [rows, columns] in groups of four-bit codes: value = (code − zero) · scale · step.

    Attributes:
        codes: uint8 [rows, groups, GROUP], from 0 to 15; columns that the last group lacks are zeros of the weight.
        zeros: uint8 [rows, groups], from 0 to 15.
        scales: uint8 [rows, groups], from 1 to 255.
        steps: fp32 [rows, 1], powers of two.
    """

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    steps: Tensor

    def values(self) -> Tensor:
        """Return the weight that the codes stand for, fp32 [rows, groups · GROUP]."""
        scales = (self.scales * self.steps).unsqueeze(-1)
        return ((self.codes.float() - self.zeros.unsqueeze(-1)) * scales).flatten(1)


def quantize_groups(weight: Tensor) -> Groups:
    """Return the four-bit codes of a weight [rows, columns], each group between its least and its largest value.

    Zero is a value of every group. On real weights the error is 6 to 8 % less than with codes around zero.
    """
    exact = weight.detach().float()
    grouped = nn.functional.pad(exact, (0, -exact.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    least, most = grouped.aminmax(dim=-1)
    least = least.clamp_max(0)
    width = (most.clamp_min(0) - least) / LARGEST_CODE
    largest = width.amax(-1, keepdim=True).clamp_min(2.0 ** EXPONENTS[0])
    steps = torch.exp2((largest / LARGEST_SCALE).log2().ceil().clamp(*EXPONENTS))
    scales = (width / steps).ceil().clamp(1, LARGEST_SCALE)
    scale = scales * steps
    zeros = (-least / scale).round().clamp(0, LARGEST_CODE)
    codes = ((grouped / scale.unsqueeze(-1)).round() + zeros.unsqueeze(-1)).clamp(0, LARGEST_CODE)
    return Groups(codes.to(torch.uint8), zeros.to(torch.uint8), scales.to(torch.uint8), steps)


def round_groups(weight: Tensor) -> Tensor:
    """Return a weight [out, in], or rows of a table [..., H], as the four-bit files have it."""
    rows = quantize_groups(weight.flatten(0, -2)).values()[:, : weight.shape[-1]]
    return _pass_through(weight, rows.view(weight.shape))


def row_scales(weight: Tensor, *, paired: bool) -> Tensor:
    """Return the int8 scales of a weight's rows, fp32 [..., 1], with which no nearest code is too large.

    Args:
        weight: [out, in], or rows of a table [..., H].
        paired: Whether neighbors, the inputs 2 i and 2 i + 1, must fit together.
    """
    exact = weight.detach().float()
    largest = exact.abs().amax(-1, keepdim=True)
    if paired and exact.shape[-1] > 1:
        odd = exact[..., 1::2]
        even = exact[..., ::2][..., : odd.shape[-1]]
        # Of neighbors of two signs, the sum is smaller than one of them.
        largest = torch.maximum(largest, (even + odd).abs().amax(-1, keepdim=True))
    return largest.clamp_min(SMALLEST) / LARGEST  # two codes are rounded up to one more than 127 together


def round_weight(weight: Tensor, *, paired: bool) -> Tensor:
    """Return a weight as the int8 files have it: the nearest codes, with a scale for each row.

    Args:
        weight: [out, in], or rows of a table [..., H].
        paired: As for `row_scales`.
    """
    scales = row_scales(weight, paired=paired)
    return _pass_through(weight, (weight.detach().float() / scales).round() * scales)


def round_activation(values: Tensor) -> Tensor:
    """Return activations [..., H] as the int8 files have them: 255 steps between a token's least and largest."""
    exact = values.detach().float()
    least, most = exact.aminmax(dim=-1, keepdim=True)
    step = (most - least).clamp_min(SMALLEST) * (1 / LEVELS)
    return _pass_through(values, ((exact - least) / step).round().clamp(0, LEVELS) * step + least)


def activation_group(widths: Iterable[int]) -> int:
    """Return the size of OpenVINO's groups of activations: the largest one that divides what all products read.

    A product whose rows a group does not divide would not be quantized.
    """
    common = math.gcd(*widths)
    return max(size for size in range(1, ACTIVATION_GROUP + 1) if common % size == 0)


def round_signed_weight(weight: Tensor) -> Tensor:
    """Return a weight [out, in], or rows of a table [..., H], as OpenVINO's int8 files have it."""
    exact = weight.detach().float()
    least, most = exact.aminmax(dim=-1, keepdim=True)
    scales = torch.where(-least >= most, -least, -most) / 128
    codes = (exact / torch.where(scales == 0, 1, scales)).round().clamp(-128, 127)
    return _pass_through(weight, codes * scales.half().float())


def round_in_groups(values: Tensor, group: int) -> Tensor:
    """Return activations [..., H] as OpenVINO's int8 files have them, H a multiple of `group`."""
    grouped = values.detach().float().unflatten(-1, (-1, group))
    scales = grouped.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / LARGEST
    return _pass_through(values, ((grouped / scales).round() * scales).flatten(-2))


def _pass_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Return the rounded values, with the gradient of the exact ones."""
    return values + (rounded.to(values.dtype) - values).detach()
