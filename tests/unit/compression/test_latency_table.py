"""Test that a table of latencies adds up to what whole models take, and that tables of other models are refused."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, DistilBertConfig, ElectraConfig

from ds_distill.compression import latency_table, runtimes
from ds_distill.compression.latency_table import LatencyTable, feed_forward_steps, measure_table, time_calls
from ds_distill.compression.runtimes import NEEDS, load_in_runtime
from ds_distill.config.pruning import RUNTIMES
from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.models.layer_shapes import LayerShape, set_layer_shapes
from ds_distill.models.loading import new_model
from ds_distill.utils.errors import UserError

CONFIG = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24)
TABLE = measure_table(CONFIG, "flops", 2, 10)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(feed_forward_steps(CONFIG))), min_size=3, max_size=3))
@settings(deadline=None, max_examples=20)
def test_a_model_of_any_shapes_takes_the_sum_of_its_parts(sizes):
    shapes = [LayerShape(*each) for each in sizes]
    config = BertConfig(**CONFIG.to_dict())
    set_layer_shapes(config, shapes)
    expected = forward_flops_per_token(config, 10, 0.0) * 20 / 1e9
    assert np.isclose(TABLE.of_shapes(shapes), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("columns", [1, 7, 8, 24, 1000, 3072, 5000])
def test_steps_reach_from_nothing_to_everything(columns):
    config = BertConfig(**CONFIG.to_dict() | {"intermediate_size": columns})
    steps = feed_forward_steps(config)
    assert steps[0] == 0 and steps[-1] == columns and steps == sorted(set(steps))
    assert columns < 1024 or set(np.diff(steps[:-1])) == {128}


def test_a_model_of_other_widths_than_the_steps_has_them_in_its_table(tmp_path):
    config = BertConfig(**CONFIG.to_dict())
    set_layer_shapes(config, shapes := [LayerShape(2, 5), LayerShape(0, 23), LayerShape(4, 24)])
    table = measure_table(config, "flops", 2, 10)
    assert np.isclose(table.of_shapes(shapes), forward_flops_per_token(config, 10, 0.0) * 20 / 1e9)
    TABLE.save(tmp_path / "table.json")
    with pytest.raises(UserError, match="sizes of the model are missing"):
        LatencyTable.load(tmp_path / "table.json", config, "flops", 2, 10)


def test_a_table_is_read_as_it_was_written(tmp_path):
    TABLE.save(tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text())["unit"] == "billions of operations"
    assert LatencyTable.load(tmp_path / "table.json", CONFIG, "flops", 2, 10) == TABLE


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((CONFIG, "torch", 2, 10), "its runtime is flops, not torch"),
        ((CONFIG, "flops", 1, 10), "its shape is 2x10, not 1x10"),
        ((DistilBertConfig(dim=16, n_heads=4), "flops", 2, 10), 'its model is .*"bert".*, not .*"distilbert"'),
        ((BertConfig(**CONFIG.to_dict() | {"num_hidden_layers": 2}), "flops", 2, 10), "sizes of the model are missing"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path, asked, message):
    TABLE.save(tmp_path / "table.json")
    with pytest.raises(UserError, match=message):
        LatencyTable.load(tmp_path / "table.json", *asked)


def test_a_table_of_embeddings_of_another_width_is_refused(tmp_path):
    sizes = {key: value for key, value in CONFIG.to_dict().items() if key in ("hidden_size", "num_attention_heads")}
    eight, sixteen = (ElectraConfig(**sizes, intermediate_size=24, embedding_size=width) for width in (8, 16))
    measure_table(eight, "flops", 2, 10).save(tmp_path / "table.json")
    with pytest.raises(UserError, match='its model is .*"embedding": 8,.*, not .*"embedding": 16,'):
        LatencyTable.load(tmp_path / "table.json", sixteen, "flops", 2, 10)


@pytest.mark.parametrize(
    "change", [{"heads": None}, {"heads": ["a"]}, {"base": {"3": -1.0}}, {"base": {"3": "nan"}}, {"other": 1}]
)
def test_a_damaged_table_is_refused(tmp_path, change):
    TABLE.save(tmp_path / "table.json")
    values = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps(values | change))
    with pytest.raises(UserError, match="not a latency table"):
        LatencyTable.load(tmp_path / "table.json", CONFIG, "flops", 2, 10)


@pytest.mark.parametrize("columns", [-8, 25])
def test_widths_that_the_model_cannot_have_are_refused(tmp_path, columns):
    replace(TABLE, feed_forward=TABLE.feed_forward | {columns: 0.0}).save(tmp_path / "table.json")
    with pytest.raises(UserError, match=f"it has feed-forwards of {columns} columns, but the model's have 0 to 24"):
        LatencyTable.load(tmp_path / "table.json", CONFIG, "flops", 2, 10)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "table.json").write_text("{")
    with pytest.raises(UserError, match="not a latency table"):
        LatencyTable.load(tmp_path / "table.json", CONFIG, "flops", 2, 10)


def test_each_runtime_runs_a_model_of_pruned_layers(tmp_path, monkeypatch):
    config = BertConfig(**CONFIG.to_dict() | {"num_hidden_layers": 2})
    set_layer_shapes(config, [LayerShape(3, 16), LayerShape(0, 0)])
    model = new_model(config, head=False).eval()
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        expected = model(ids).last_hidden_state.numpy()
    trace, graph = runtimes.write_onnx, tmp_path / "model.onnx"

    def trace_once(source, file):
        if not graph.exists():
            trace(source, graph)
        shutil.copy(graph, file)

    monkeypatch.setattr(runtimes, "write_onnx", trace_once)
    for runtime in ("torch", "onnxruntime", "openvino-int8"):  # the others load the same files
        (found,) = load_in_runtime(model, runtime, 2, 10)()
        atol = 0.2 if runtime.endswith("int8") else 1e-4
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=runtime)
    assert set(RUNTIMES) == {*NEEDS, "flops"}


def test_times_are_of_the_calls_of_their_names():
    made = []
    times = time_calls({"sleeps": lambda: time.sleep(0.02), "returns": lambda: made.append("returns")}, "")
    assert list(times) == ["sleeps", "returns"] and made
    assert times["sleeps"] >= 20 > times["returns"]  # the least of many, which other work on the machine does not reach


def test_a_time_that_other_work_was_in_does_not_spread_to_larger_sizes(monkeypatch):
    """The least of several times is too high at most: so a size takes no longer than any larger one."""

    def measured(configs, runtime, batch, length):
        real = {
            probe: 1.0 + probe[0] * (shape.heads + shape.feed_forward / 8) for probe in configs for shape in probe[1:]
        }
        disturbed = next(probe for probe in configs if probe[1] == LayerShape(2, 0))
        return real | {disturbed: 50.0}

    monkeypatch.setattr(latency_table, "measure_encoders", measured)
    assert measure_table(CONFIG, "torch", 2, 10).heads == [0.0, 1.0, 3.0, 3.0, 4.0]
