"""ONNX Runtime: load the files with the line of docs/guide/export.md."""

import onnxruntime
from checks import call, numbers, run_checks
from transformers import AutoTokenizer

FILES = {"onnx": "model.onnx", "onnx-int8": "model_quantized.onnx", "onnx-int4": "model_q4.onnx"}


def load(check):
    tokenizer = AutoTokenizer.from_pretrained(check["folder"])
    session = onnxruntime.InferenceSession(f"{check['folder']}/onnx/{FILES[check['format']]}")
    return lambda given: {"logits": numbers(session.run(None, dict(call(tokenizer, given, return_tensors="np"))))}


run_checks(load, ["onnxruntime", "transformers"])
