"""Calibration of int8 files on text, without training.

Two closed forms make the rounding cost less. The inputs of a product are divided by factors with which the rows of its
matrix are multiplied: what is left of both has a smaller range (Xiao et al. 2023, SmoothQuant, section 4). And the
weights of a column are rounded one after another, each time with the error so far made up for by those that are still
to be rounded (Frantar et al. 2023, GPTQ, section 3; Hassibi and Stork 1993).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds_distill.compression.rounding import LARGEST, PAIR, SMALLEST, row_scales
from ds_distill.compression.surgeon import damped
from ds_distill.exporters.onnx import save_graph
from ds_distill.exporters.runtimes import OnnxRunner

MIGRATION = 0.5  # the share of an input's range that its factor takes over; the authors' value
WIDEST = 32.0  # by which a factor may differ from the middle one: other texts may have more of an input than this one
BLOCK = 64  # rows whose errors are passed on together, which changes the result by rounding alone


@dataclass
class Inputs:
    """What a product has read of a text.

    Attributes:
        largest: The largest absolute value of each input, fp32 [K].
        gram: The sum of x xᵀ over tokens, fp64 [K, K].
    """

    largest: np.ndarray
    gram: np.ndarray

    def add(self, values: np.ndarray) -> None:
        """Count the inputs [tokens, K] of further tokens."""
        self.largest = np.maximum(self.largest, np.abs(values).max(axis=0, initial=0.0))
        self.gram += (values.T @ values).astype(np.float64)

    @staticmethod
    def total(parts: Iterable[Inputs]) -> Inputs:
        """Return what several products have read together."""
        first, *others = parts
        total = Inputs(first.largest, first.gram.copy())
        for part in others:
            total.largest = np.maximum(total.largest, part.largest)
            total.gram += part.gram
        return total


def find_weight(node):
    """Return (constant [K, N], False) of a product by it, (constant [N, K], True) of one by its transpose, or None."""
    if node.op_type != "MatMul":
        return None
    matrix = node.inputs[1]
    if matrix.const_value is not None:
        return (matrix, False) if len(matrix.shape) == 2 else None
    producer = matrix.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0].const_value is not None:
        return producer.inputs[0], True
    return None


def collect_inputs(graph: Path, batches: Iterable[Mapping[str, np.ndarray]], scratch: Path) -> dict[str, Inputs]:
    """Return what the products of an fp32 ONNX file read of real tokens, by the name of the value.

    What does not depend on the text, such as DeBERTa's embeddings of relative positions, counts as much as the tokens
    together: each attention score has one of each.

    Args:
        graph: The file.
        batches: Its inputs, each with an attention_mask [B, L].
        scratch: A folder for the same graph with these values as outputs.
    """
    import onnx_ir

    model = onnx_ir.load(graph)
    products: list[Any] = [node for node in model.graph if find_weight(node) is not None]
    values = dict.fromkeys(node.inputs[0] for node in products)
    model.graph.outputs.extend(value for value in values if value not in model.graph.outputs)
    names: list[Any] = [value.name for value in model.graph.outputs]
    fixed = {value.name for value in values if not _depends_on_inputs(value)}
    wanted = {value.name for value in values}
    file = scratch / "calibration.onnx"
    save_graph(model, file)
    run, found, tokens, rows_of = OnnxRunner(file), dict[str, Inputs](), 0, dict[str, int]()
    for batch in batches:
        real = batch["attention_mask"] > 0
        tokens += int(real.sum())
        for name, read in zip(names, run(dict(batch)), strict=True):
            if name not in wanted or name in fixed and name in found:  # the model's own output, or counted before
                continue
            is_of_tokens = name not in fixed and read.shape[:-1] == real.shape
            rows = read[real] if is_of_tokens else read.reshape(-1, read.shape[-1])
            rows_of[name] = len(rows)
            width = rows.shape[-1]
            inputs = found.setdefault(name, Inputs(np.zeros(width, np.float32), np.zeros((width, width))))
            inputs.add(rows)
    for name in fixed & found.keys():
        found[name].gram *= tokens / rows_of[name]
    return found


def _depends_on_inputs(value) -> bool:
    """Return whether a value of a graph differs from text to text."""
    seen, left = set(), [value]
    while left:
        value = left.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if producer is None and value.const_value is None:
            return True
        left += producer.inputs if producer is not None else ()
    return False


def smoothing_factors(inputs: Inputs, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Return fp32 [K], by which a product's inputs are to be divided and the rows of its matrix multiplied.

    Args:
        inputs: What is read.
        matrices: [K, N] of each product that reads it.
    """
    rows = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    of_inputs, of_rows = (np.log(np.maximum(largest, SMALLEST)) for largest in (inputs.largest, rows))
    logs = MIGRATION * of_inputs - (1 - MIGRATION) * of_rows
    spread = np.log(WIDEST)
    return np.exp(np.clip(logs - np.median(logs), -spread, spread)).astype(np.float32)


def round_with_feedback(weight: np.ndarray, gram: np.ndarray, *, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (int8 codes [K, N], fp32 scales [N]) of a matrix, of little error in its products.

    Args:
        weight: [K, N].
        gram: The sum of x xᵀ over the inputs x of a text, [K, K].
        paired: Whether neighbors must fit together, see `compression.rounding`.
    """
    step = row_scales(torch.from_numpy(weight.T), paired=paired).squeeze(1)
    # What counts most comes first, while the others can make up for it.
    order = np.argsort(-np.diagonal(gram), kind="stable")
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(torch.from_numpy(gram[np.ix_(order, order)]))))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    left = torch.from_numpy(weight[order].astype(np.float32))
    codes = torch.zeros(left.shape)  # in the order of the weight
    for begin in range(0, len(left), BLOCK):
        end = min(begin + BLOCK, len(left))
        errors = torch.empty(end - begin, left.shape[1])
        for row in range(begin, end):
            neighbor = order[row] ^ 1
            code = _clamp((left[row] / step).round(), codes[neighbor] if paired and neighbor < len(codes) else None)
            codes[order[row]] = code
            errors[row - begin] = (left[row] - code * step) / upper[row, row]
            left[row + 1 : end] -= upper[row, row + 1 : end, None] * errors[row - begin]
        left[end:] -= upper[begin:end, end:].T @ errors
    return codes.to(torch.int8).numpy(), step.numpy()


def _clamp(codes: torch.Tensor, neighbors: torch.Tensor | None) -> torch.Tensor:
    """Return codes that fit, also beside their neighbors; those that are still to be rounded are 0."""
    if neighbors is None:
        return codes.clamp(-LARGEST, LARGEST)
    most, least = PAIR - neighbors.clamp_min(0), -PAIR - neighbors.clamp_max(0)
    return codes.clamp(least.clamp_min(-LARGEST), most.clamp_max(LARGEST))
