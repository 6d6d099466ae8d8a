"""sentence-transformers: compute sentence vectors of a masked LM and of an embedding folder, with each backend."""

from checks import numbers, run_checks
from sentence_transformers import SentenceTransformer

OPTIONS = {
    "hf": {},
    "onnx": {"backend": "onnx", "model_kwargs": {"file_name": "onnx/model.onnx"}},
    "onnx-int8": {"backend": "onnx", "model_kwargs": {"file_name": "onnx/model_quantized.onnx"}},
    "openvino-int8": {"backend": "openvino", "model_kwargs": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}},
}


def load(check):
    model = SentenceTransformer(check["folder"], device="cpu", **OPTIONS[check["format"]])
    return lambda given: {"mean": numbers(model.encode([given["text"]])[0])}


run_checks(load, ["sentence-transformers", "transformers"])
