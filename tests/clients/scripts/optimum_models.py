"""optimum-onnx and optimum-intel: load the folder with their model classes, inside transformers' pipeline."""

import torch
from checks import call, numbers, run_checks
from transformers import AutoTokenizer, pipeline
from transformers_classes import AUTO

FILES = {
    "onnx": {},
    "onnx-int8": {"subfolder": "onnx", "file_name": "model_quantized.onnx"},
    "openvino-int8": {"subfolder": "openvino"},
}


def load(check):
    tokenizer, model = AutoTokenizer.from_pretrained(check["folder"]), load_model(check)

    def answer(given):
        with torch.no_grad():
            outputs = model(**call(tokenizer, given, return_tensors="pt"))
        if check["task"] == "question-answering":
            return {"logits": numbers([torch.as_tensor(outputs.start_logits), torch.as_tensor(outputs.end_logits)])}
        views = {"logits": numbers(torch.as_tensor(outputs[0]))}
        if check["task"] not in ("fill-mask", "text-classification"):
            return views
        pipe = pipeline(check["task"], model=model, tokenizer=tokenizer)
        cut = {"tokenizer_kwargs": {"truncation": True}} if check["task"] == "fill-mask" else {"truncation": True}
        result = pipe({"text": given["text"], "text_pair": given["pair"]} if "pair" in given else given["text"], **cut)
        key = "token" if check["task"] == "fill-mask" else "label"
        return views | {
            "scores": [[row[key], row["score"]] for row in ([result] if isinstance(result, dict) else result)]
        }

    return answer


def load_model(check):
    ending = (
        "FeatureExtraction"
        if check["task"] == "feature-extraction"
        else AUTO[check["task"]].removeprefix("AutoModelFor")
    )
    if check["format"] == "openvino-int8":
        from optimum import intel

        return getattr(intel, f"OVModelFor{ending}").from_pretrained(
            check["folder"], **FILES["openvino-int8"], ov_config={"INFERENCE_PRECISION_HINT": "f32"}
        )
    from optimum import onnxruntime

    return getattr(onnxruntime, f"ORTModelFor{ending}").from_pretrained(check["folder"], **FILES[check["format"]])


run_checks(load, ["optimum-onnx", "optimum-intel", "transformers", "onnxruntime", "openvino"])
