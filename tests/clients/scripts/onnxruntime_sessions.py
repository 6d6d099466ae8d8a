"""ONNX Runtime: load the files with the line of docs/guide/export.md."""

import onnxruntime
from checks import call, numbers, run_checks
from transformers import AutoTokenizer


def load(check):
    tokenizer = AutoTokenizer.from_pretrained(check["folder"])
    file = {"onnx": "model.onnx", "onnx-int8": "model_quantized.onnx"}[check["format"]]
    session = onnxruntime.InferenceSession(f"{check['folder']}/onnx/{file}")
    return lambda given: {"logits": numbers(session.run(None, dict(call(tokenizer, given, return_tensors="np"))))}


run_checks(load, ["onnxruntime", "transformers"])
