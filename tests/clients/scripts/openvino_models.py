"""OpenVINO: load its own format and the ONNX files with the line of docs/guide/export.md."""

import openvino
from checks import call, numbers, run_checks
from transformers import AutoTokenizer

FILES = {
    "onnx": "onnx/model.onnx",
    "onnx-int8": "onnx/model_quantized.onnx",
    "openvino-int8": "openvino/openvino_model.xml",
    "openvino-int4": "openvino/openvino_model_int4.xml",
}


def load(check):
    tokenizer = AutoTokenizer.from_pretrained(check["folder"])
    model = openvino.compile_model(
        f"{check['folder']}/{FILES[check['format']]}", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def answer(given):
        outputs = model(dict(call(tokenizer, given, return_tensors="np")))
        return {"logits": numbers([outputs[i] for i in range(len(model.outputs))])}

    return answer


run_checks(load, ["openvino", "transformers"])
