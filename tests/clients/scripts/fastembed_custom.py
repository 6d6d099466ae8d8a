"""fastembed: load a custom model with the lines of its README."""

import json
from pathlib import Path

from checks import numbers, run_checks
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

FILES = {"onnx": "onnx/model.onnx", "onnx-int8": "onnx/model_quantized.onnx"}


def load(check):
    config = json.loads((Path(check["folder"]) / "config.json").read_text())
    name = f"me/{check['export']}-{check['format']}"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=name),
        dim=config.get("dim") or config["hidden_size"],
        model_file=FILES[check["format"]],
    )
    model = TextEmbedding(name, specific_model_path=check["folder"])
    return lambda given: {"unit_mean": numbers(next(iter(model.embed([given["text"]]))))}


run_checks(load, ["fastembed", "onnxruntime", "tokenizers"])
