"""The names of the int8 files whose arithmetic a model may be trained in."""

from typing import Literal

QuantizedFormat = Literal["onnx-int8", "onnx-int8-vnni"]
