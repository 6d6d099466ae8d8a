"""Test that a matrix that layers share, as ALBERT's do, is quantized, calibrated and stored once in every format."""

import re

import numpy as np
import onnx_ir
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from ds_distill.exporters.format_table import FORMATS, Job
from ds_distill.exporters.int8 import write_onnx_int8
from ds_distill.exporters.int8_calibration import collect_inputs, find_weight
from ds_distill.exporters.model import load_source
from ds_distill.exporters.parity import text_batches, torch_runner
from ds_distill.exporters.runtimes import OnnxRunner
from tests.tiny import save_encoder

# So large that the exporter leaves a Transpose of it in the graph
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "embedding_size": 32}
QUANTIZED = [name for name, format in FORMATS.items() if not format.exact and not format.unavailable_reason()]


def uneven_encoder(family, folder):
    """A random model of three layers, some of whose hidden dimensions are much larger than the others."""
    save_encoder(family, folder)
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(type(config)(**config.to_dict() | SIZES))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm.weight" in name.lower().replace("_", ""):
                parameter[::7] *= 12
            elif parameter.dim() == 2:
                parameter.normal_(std=0.07)
    model.save_pretrained(folder)
    return load_source(str(folder))


@pytest.fixture(scope="module", params=["albert", pytest.param("deberta-v2", marks=pytest.mark.long)])
def written(request, tmp_path_factory):
    """Return (source, its text as batches, the fp32 graph, a folder)."""
    folder = tmp_path_factory.mktemp("shared")
    source = uneven_encoder(request.param, folder / "model")
    batches = text_batches(source, [], sequences=24)
    job = Job(source, batches, folder)
    return source, batches, job, folder


def float_matrices(file):
    """Return the shapes of a file's fp32 constants that are as large as a matrix of a layer."""
    if file.suffix == ".xml":
        texts = re.findall(r'<data element_type="f32" shape="([0-9, ]+)"', file.read_text())
        shapes = [tuple(map(int, text.split(","))) for text in texts]
    else:
        values = onnx_ir.load(file).graph.initializers.values()
        shapes = [tuple(value.shape) for value in values if value.dtype == onnx_ir.DataType.FLOAT]
    return [shape for shape in shapes if np.prod(shape) >= 64 * 128]


@pytest.mark.parametrize("name", QUANTIZED)
def test_no_matrix_stays_fp32(written, name):
    _, _, job, folder = written
    assert len(float_matrices(job.graph)) >= 7, "the fp32 file has them"
    file = folder / name / FORMATS[name].file.split("/")[-1]
    file.parent.mkdir()
    FORMATS[name].write(job, file)
    assert float_matrices(file) == []


def test_each_is_stored_once(written):
    """Also in the int8 file, where every layer's products read it."""
    source, _, job, folder = written
    file = folder / "once.onnx"
    write_onnx_int8(job.graph, file, paired=True)
    for graph in (job.graph, file):
        values = onnx_ir.load(graph).graph.initializers.values()
        matrices = [value for value in values if value.const_value.size >= 32 * 128]
        stored = sum(value.const_value.size for value in matrices)
        assert stored <= sum(parameter.numel() for parameter in source.model.parameters())


def test_calibration_counts_what_all_layers_read(written):
    source, batches, job, folder = written
    calibration = collect_inputs(job.graph, [batch.inputs for batch in batches[:2]], folder)
    assert len(find_shared(job.graph)) >= (6 if source.model.config.model_type == "albert" else 1)
    errors = []
    for number, given in enumerate((None, calibration)):
        file = folder / f"{number}.onnx"
        write_onnx_int8(job.graph, file, paired=True, calibration=given)
        expected, found = (run(batches[2].inputs)[0] for run in (torch_runner(source), OnnxRunner(file)))
        real = batches[2].inputs["attention_mask"] > 0
        errors.append(np.square(found[real] - expected[real]).mean() / expected[real].var())
    # DeBERTa's vocabulary, which is narrow here, is not more exact
    assert errors[1] < (0.6 if source.model.config.model_type == "albert" else 1) * errors[0], errors


def find_shared(graph):
    """Return the matrices that several products read."""
    read = [found[0].name for node in onnx_ir.load(graph).graph if (found := find_weight(node))]
    return {name for name in read if read.count(name) > 1}
