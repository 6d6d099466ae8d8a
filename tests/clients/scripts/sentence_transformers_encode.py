"""sentence-transformers: sentence vectors of a masked LM and of an embedding folder, by each backend; classifiers and scores as cross-encoders."""

import torch
from checks import numbers, run_checks
from sentence_transformers import CrossEncoder, SentenceTransformer

BACKENDS = {
    "hf": {},
    "onnx": {"backend": "onnx", "model_kwargs": {"file_name": "onnx/model.onnx"}},
    "onnx-int8": {"backend": "onnx", "model_kwargs": {"file_name": "onnx/model_quantized.onnx"}},
    "openvino-int8": {"backend": "openvino", "model_kwargs": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}},
}


def load(check):
    if check["task"] in ("fill-mask", "feature-extraction"):
        model = SentenceTransformer(check["folder"], device="cpu", **BACKENDS[check["format"]])
        return lambda given: {"mean": numbers(model.encode([given["text"]])[0])}
    encoder = CrossEncoder(check["folder"], device="cpu")

    def answer(given):
        texts = (given["text"], given["pair"]) if "pair" in given else (given["text"],)
        return {"logits": numbers(torch.as_tensor(encoder.predict([texts], activation_fn=torch.nn.Identity())[0]))}

    return answer


run_checks(load, ["sentence-transformers", "transformers"])
