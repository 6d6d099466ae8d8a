"""Test that a model in training computes what its exported file computes, and that its gradient passes through."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)

from ds_distill.compression import fake_quantize as rounding_of_models
from ds_distill.compression.fake_quantize import ARITHMETIC, check_quantizable, fake_quantize, unquantize
from ds_distill.compression.rounding import (
    activation_group,
    round_activation,
    round_groups,
    round_in_groups,
    round_weight,
)
from ds_distill.config.quantization import QuantizedFormat
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.exporters.format_table import FORMATS
from ds_distill.exporters.int4 import write_onnx_int4, write_openvino_int4
from ds_distill.exporters.int8 import (
    full_range_unavailable_reason,
    quantize,
    write_onnx_int8,
    write_openvino_int8,
)
from ds_distill.exporters.model import load_source
from ds_distill.exporters.onnx import write_onnx
from ds_distill.exporters.parity import text_batches
from ds_distill.exporters.runtimes import OnnxRunner, OpenvinoRunner
from ds_distill.finetune.quantize_last import QuantizeLast
from ds_distill.losses.objective import Objective
from ds_distill.models.low_rank import get_rank, set_rank
from ds_distill.recipe import Losses
from ds_distill.utils.errors import UserError
from tests.tiny import FAMILIES, save_encoder

HEADS = {"classes": AutoModelForSequenceClassification, "spans": AutoModelForQuestionAnswering}


def save_model(family: str, head: str, folder: Path) -> Path:
    save_encoder(family, folder)
    if family in ("albert", "electra"):  # whose table would be kept twice if it is small: folded into the product too
        model = AutoModelForMaskedLM.from_pretrained(folder)
        model.resize_token_embeddings(1000)
        model.save_pretrained(folder)
    if head in HEADS:
        torch.manual_seed(1)
        model = HEADS[head].from_pretrained(folder, num_hidden_layers=1)  # to trace a layer takes seconds
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        load_tokenizer(folder).save_pretrained(folder)
    return folder


# The families differ in what is not rounded.
CASES = [pytest.param(family, "words", marks=() if family == "bert" else pytest.mark.long) for family in FAMILIES]
HEADED = [("bert", "classes"), ("distilbert", "spans")]


def outputs_around(source, inputs, format):
    """Return the model's outputs before it is fake-quantized, while it is, and after."""
    inputs = {name: torch.from_numpy(values) for name, values in inputs.items()}
    found = []
    with torch.no_grad():
        for change in (lambda: None, lambda: fake_quantize(source.model, format), lambda: unquantize(source.model)):
            change()
            found.append([out.numpy() for out in source.model(**inputs).to_tuple()])
    return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Return a function that returns (source, its fp32 graph) of a family and a head, traced once.

    Tables have values that fp16 holds: to round to fp16 needs no training.
    """

    @functools.cache
    def trace(family, head):
        folder = tmp_path_factory.mktemp("traced")
        return write_graph(load_source(str(save_model(family, head, folder / "model"))), folder / "fp32.onnx")

    return trace


def write_graph(source, graph):
    for module in source.model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.data = module.weight.data.half().float()
    write_onnx(source, graph)
    return source, graph


@pytest.mark.parametrize("family, head", [*CASES, *HEADED])
def test_it_computes_what_the_exported_file_computes(traced, family, head, tmp_path):
    source, graph = traced(family, head)
    batch = text_batches(source, [], sequences=4)[0]
    for format, paired in (("onnx-int8", True), ("onnx-int8-vnni", False)):
        file = tmp_path / f"{format}.onnx"
        write_onnx_int8(graph, file, paired=paired)
        if not paired:
            make_exact(file)
        expected = OnnxRunner(file)(batch.inputs)
        for whole, mine, after, told in zip(*outputs_around(source, batch.inputs, format), expected, strict=True):
            real = np.ones_like(told, bool) if head == "classes" else batch.inputs["attention_mask"] > 0
            # A value between two codes may get either, by the last bit of a sum: that moves a few tokens.
            apart, moved = np.abs(mine[real] - told[real]), np.abs(whole[real] - told[real])
            assert np.median(apart) < 1e-5 * np.abs(whole[real]).max() and apart.mean() < 0.1 * moved.mean(), format
            assert np.array_equal(after, whole), "and floats again"


def make_exact(file: Path) -> None:
    """Rewrite an int8 file, in place, so that ONNX Runtime has the sums of a processor with VNNI on any processor.

    Without VNNI it saturates the sums of unsigned times signed bytes, but not those of unsigned times unsigned ones. So
    each code of a weight gets 128 more, as its zero point does, which leaves the values as they are.
    """
    model, nodes = onnx.load(file), []
    middle = {"i": np.int32(128), "u": np.uint8(128)}
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            rows, codes = node.input
            wide, shifted, unsigned = (f"{node.output[0]}_{step}" for step in ("wide", "shifted", "unsigned"))
            nodes += [
                onnx.helper.make_node("Cast", [codes], [wide], to=onnx.TensorProto.INT32),
                onnx.helper.make_node("Add", [wide, "middle_i"], [shifted]),
                onnx.helper.make_node("Cast", [shifted], [unsigned], to=onnx.TensorProto.UINT8),
            ]
            node = onnx.helper.make_node("MatMulInteger", [rows, unsigned, "", "middle_u"], node.output)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(v, f"middle_{kind}") for kind, v in middle.items())
    onnx.save(model, file)


def test_vnnis_sums_differ_from_saturated_ones(tmp_path):
    """Otherwise the test above says nothing: large codes of neighbors saturate 16 bits, and not the file made exact."""
    torch.manual_seed(0)
    product, values = nn.Linear(64, 8, bias=False).eval(), torch.rand(1, 4, 64)
    with torch.no_grad():
        product.weight.fill_(1.0)
    graph, file = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    torch.onnx.export(product, (values,), graph, input_names=["values"], dynamo=True, external_data=False)
    write_onnx_int8(graph, file, paired=False)
    make_exact(file)
    (found,) = OnnxRunner(file)({"values": values.numpy()})
    expected = round_activation(values) @ round_weight(product.weight, paired=False).T
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("family, head", [*CASES, *HEADED])
def test_it_computes_what_openvinos_int8_file_computes(traced, family, head, tmp_path, monkeypatch):
    source, graph = traced(family, head)
    batch = text_batches(source, [], sequences=4)[0]
    write_openvino_int8(graph, tmp_path / "int8.xml", source.widths)
    expected = OpenvinoRunner(tmp_path / "int8.xml")(batch.inputs)
    rounds_activations = full_range_unavailable_reason() is None
    if not rounds_activations:  # then OpenVINO leaves them as they are, and the weights are what can be compared here
        monkeypatch.setattr(rounding_of_models, "round_in_groups", lambda values, group: values)
    for whole, mine, after, file in zip(*outputs_around(source, batch.inputs, "openvino-int8"), expected, strict=True):
        real = np.ones_like(file, bool) if head == "classes" else batch.inputs["attention_mask"] > 0
        apart, moved = np.abs(mine[real] - file[real]), np.abs(whole[real] - file[real])
        assert apart.mean() < (0.1 if rounds_activations else 0.01) * moved.mean()
        assert np.array_equal(after, whole), "and floats again"


def test_openvinos_groups_of_activations_are_those_of_the_file(traced):
    """The last group size that a file states is that with which a model is trained."""
    source, _ = traced("bert", "words")
    arithmetic = ARITHMETIC["openvino-int8"](source.model)
    assert arithmetic.activation.keywords == {"group": activation_group(source.widths)} == {"group": 32}
    assert [activation_group(widths) for widths in ((384, 1536), (768, 3072), (312, 1200), (40,))] == [384, 384, 24, 40]


@given(st.integers(1, 4), st.sampled_from([1, 2, 5]), st.integers(0, 99))
def test_an_activation_in_groups_has_127_steps_to_either_side(groups, size, seed):
    values = torch.randn(3, groups * size, generator=torch.Generator().manual_seed(seed))
    rounded = round_in_groups(values, size).view(3, groups, size)
    for row in range(3):
        for group in range(groups):
            part = values.view(3, groups, size)[row, group]
            codes = 127 * rounded[row, group] / part.abs().max()
            torch.testing.assert_close(codes, (127 * part / part.abs().max()).round(), rtol=0, atol=1e-3)
    assert not round_in_groups(torch.zeros(2, size), size).any()


def test_a_model_whose_file_has_other_factors_is_refused():
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model("bert", hidden_size=16, num_attention_heads=2))
    check_quantizable(get_rank(model.config), "finetune.quantize")
    set_rank(model.config, 4)
    with pytest.raises(
        UserError, match="^finetune.quantize: quantization-aware training does not work with linear_rank = 4"
    ):
        check_quantizable(get_rank(model.config), "finetune.quantize")


FOUR_BIT_FILES = {
    "int4.onnx": (write_onnx_int4, OnnxRunner),
    "int4.xml": (write_openvino_int4, OpenvinoRunner),
}
FOUR_BIT_CASES = [
    pytest.param(family, head, marks=() if family == "bert" else pytest.mark.long)
    for family, head in [*((family, "words") for family in FAMILIES), *HEADED]
]


@pytest.mark.parametrize("family, head", FOUR_BIT_CASES)
def test_with_four_bits_both_files_compute_the_same(traced, family, head, tmp_path):
    """Weights alone are rounded, so that no value is between two codes."""
    files_compute_the_same(*traced(family, head), head, tmp_path)


def test_with_four_bits_widths_that_groups_do_not_divide_are_right(tmp_path):
    folder = save_encoder("bert", tmp_path / "model")
    sizes = {"hidden_size": 40, "intermediate_size": 80, "num_hidden_layers": 1}
    torch.manual_seed(2)
    model = AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    files_compute_the_same(*write_graph(load_source(str(folder)), tmp_path / "fp32.onnx"), "words", tmp_path)


def files_compute_the_same(source, graph, head, folder):
    batch = text_batches(source, [], sequences=4)[0]
    outputs = outputs_around(source, batch.inputs, "onnx-int4")
    for name, (write, load) in FOUR_BIT_FILES.items():
        write(graph, folder / name)
        for whole, mine, after, file in zip(*outputs, load(folder / name)(batch.inputs), strict=True):
            real = np.ones_like(file, bool) if head == "classes" else batch.inputs["attention_mask"] > 0
            scale = np.abs(whole[real]).max()
            assert np.abs(mine[real] - file[real]).max() < 1e-4 * scale < 0.01 * np.abs(whole[real] - file[real]).max()
            assert np.array_equal(after, whole), "and floats again"


@pytest.mark.parametrize("paired", [True, False])
def test_a_weight_is_rounded_as_the_export_does(paired):
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize(weight.numpy(), paired=paired)
    expected = codes.astype(np.float32) * scales[:, None]
    np.testing.assert_allclose(round_weight(weight, paired=paired).numpy(), expected, rtol=1e-6)
    assert not round_weight(torch.zeros(2, 3), paired=paired).any()


def test_an_activation_has_255_steps_of_its_own_range():
    values = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 50]).view(3, 1)
    rounded = round_activation(values)
    least, most = values.aminmax(dim=-1, keepdim=True)
    step = (most - least) / 255
    assert ((rounded - values).abs() <= 0.5001 * step).all()
    codes = (rounded - least) / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-2)
    torch.testing.assert_close(round_activation(torch.full((2, 4), 3.0)), torch.full((2, 4), 3.0))


def test_gradients_pass_through_the_rounding():
    values = torch.randn(3, 8, requires_grad=True)
    for rounded in (lambda weight: round_weight(weight, paired=True), round_groups):
        weight = torch.randn(5, 8, requires_grad=True)
        values.grad = None
        out = round_activation(values) @ rounded(weight).T
        gradient = torch.randn_like(out)
        out.backward(gradient)
        torch.testing.assert_close(values.grad, gradient @ rounded(weight).detach())
        torch.testing.assert_close(weight.grad, gradient.T @ round_activation(values).detach())


def test_the_formats_are_those_that_a_setting_may_name():
    assert set(ARITHMETIC) == set(get_args(QuantizedFormat)) <= set(FORMATS)


@pytest.mark.parametrize("format", ["onnx-int8", "onnx-int4"])
def test_held_out_figures_are_those_of_the_rounded_model(tmp_path, format):
    model = AutoModelForMaskedLM.from_pretrained(save_encoder("bert", tmp_path)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    ids = torch.randint(5, model.config.vocab_size, (4, 24), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(24) % 3 == 0, ids, -100)
    objective = Objective(model, Losses().without_teacher(), 1).eval()
    counts = ids.numel(), int((labels >= 0).sum())
    with torch.no_grad():
        exact = float(objective(ids, None, labels, mode="evaluate")[1][:, 0].sum())
        fake_quantize(model, format)
        _, sums = objective(ids, None, labels, counts, None)
        found = float(objective(ids, None, labels, mode="evaluate")[1][:, 0].sum())
    assert found == pytest.approx(float(sums), rel=1e-6) and abs(found - exact) > 1e-3


def test_the_last_share_of_the_steps_is_rounded(tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(save_encoder("bert", tmp_path))
    linear = model.bert.encoder.layer[0].intermediate.dense
    callback = QuantizeLast(model, "onnx-int8", 0.25)
    rounded = []
    for step in range(8):
        callback.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=8), None)
        rounded.append(type(linear) is not nn.Linear)
    assert rounded == [False] * 6 + [True] * 2
    resumed = QuantizeLast(model, "onnx-int8", 0.25)  # from a checkpoint within that share
    resumed.on_step_begin(None, SimpleNamespace(global_step=7, max_steps=8), None)
    unquantize(model)
    assert type(linear) is nn.Linear and "arithmetic" not in vars(linear)
