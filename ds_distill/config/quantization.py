"""The names of the quantized files whose arithmetic a model may be trained in."""

from typing import Literal

QuantizedFormat = Literal["onnx-int8", "onnx-int8-vnni", "openvino-int8", "onnx-int4"]
