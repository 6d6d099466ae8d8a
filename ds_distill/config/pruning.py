"""How a model is pruned, and how people write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
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

    @property
    def width_alone(self) -> bool:
        """Whether the width alone is cut, so that there is no speed to reach."""
        return self.target == 1

    def identity(self) -> dict[str, Any]:
        """Return what decides the result beside the model and the text."""
        return asdict(self)


def check_cuts(cuts: Sequence[Pruning], *, distilled: bool, compare: bool = False) -> None:
    """Raise UserError where a model cannot be cut like this, whatever the model.

    Args:
        cuts: How to prune, one cut after the other.
        distilled: Whether the model is distilled after each cut.
        compare: Whether other methods are compared, which cut to the same shapes.
    """
    for cut in cuts:
        if cut.hidden_size is not None and cut.hidden_size < 1:
            raise UserError(
                f"--hidden_size {cut.hidden_size}: must be 1 or more; give a multiple of the model's head size, or "
                "leave it out"
            )
    if not cuts or any(cut.width_alone and not cut.hidden_size for cut in cuts):
        raise UserError("--target is missing; give how many times as fast the model is to be, such as 1.75x")
    for cut in cuts:
        if not cut.width_alone:
            read_target(f"{cut.target:g}", "--target")
        read_shape(f"{cut.batch}x{cut.length}", "--shape")
        if cut.runtime not in RUNTIMES:
            raise UserError(f"--runtime {cut.runtime}: unknown; give one of {', '.join(RUNTIMES)}")
        if cut.uniform and cut.width_alone:
            raise UserError("--uniform: is for cuts of --target, which is missing; give it, or leave --uniform out")
        if compare and cut.width_alone:
            raise UserError("--compare: is for cuts of --target, which is missing; give it, or leave --compare out")
        if cut.sequences < 1:
            raise UserError(f"--sequences {cut.sequences}: must be at least 1")
    speeds = [cut.target for cut in cuts]
    given = f"--target {' '.join(f'{speed:g}x' for speed in speeds)}"
    if speeds != sorted(set(speeds)):
        raise UserError(f"{given}: each cut must be faster than the one before it")
    if len(cuts) > 1 and not distilled:
        raise UserError(
            f"{given}: several cuts are worth it only with training between them; add --distill, or give one"
        )
    if len(cuts) > 1 and any(cut.uniform or cut.hidden_size for cut in cuts):
        raise UserError(
            "--uniform and --hidden_size: go with one --target, since a stock class does not remember its whole size; "
            "give one"
        )
