"""How a model is pruned, and how people write it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args

from ds_distill.config.values import Reader
from ds_distill.utils.errors import UserError

Runtime = Literal["onnxruntime", "onnxruntime-int8", "openvino", "openvino-int8", "torch", "flops"]
RUNTIMES: tuple[str, ...] = get_args(Runtime)


def read_target(value: Any, key: str) -> float:
    """Return a speed such as 1.75x as a number; raise UserError for other texts, and for speeds of 1 or less."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*[x×]?", str(value).strip(), re.IGNORECASE)
    if not match or not 1 < float(match[1]) <= 1000:
        raise UserError(f"{key} {value}: give how many times as fast the model is to be, above 1, such as 1.75x")
    return float(match[1])


def read_shape(value: Any, key: str) -> str:
    """Return a shape such as 1x128; raise UserError for other texts."""
    match = re.fullmatch(r"(\d{1,5})\s*[x×]\s*(\d{1,6})", str(value).strip(), re.IGNORECASE)
    if not match or not int(match[1]) or not int(match[2]):
        raise UserError(f"{key} {value}: give sequences x tokens of a call, such as 1x128")
    return f"{int(match[1])}x{int(match[2])}"


Target = Annotated[str, Reader("speed", lambda value, key: f"{read_target(value, key):g}x")]
Shape = Annotated[str, Reader("shape", read_shape)]


@dataclass(frozen=True)
class Pruning:
    """How to prune a model.

    Attributes:
        target: How many times as fast it is to be.
        runtime: Where.
        batch: Sequences per call.
        length: Tokens per sequence.
        uniform: Whether all layers stay alike, so that the folder loads as a stock class.
        sequences: How many sequences of the text the saliencies are of.
        hidden_size: The width that the model is cut to first, or None. The target, if not 1, is then of that model.
    """

    target: float
    runtime: str = "onnxruntime"
    batch: int = 1
    length: int = 128
    uniform: bool = False
    sequences: int = 512
    hidden_size: int | None = None

    def identity(self) -> dict[str, Any]:
        """Return what decides the result beside the model and the text."""
        return asdict(self)
