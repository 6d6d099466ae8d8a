"""Test that layers with shapes of their own compute what the same layers with zeros in their place compute."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM

from ds_distill.finetune.heads import load_for_task
from ds_distill.models.families import FAMILIES, get_family, head_size
from ds_distill.models.folder import find_model_folder
from ds_distill.models.layer_shapes import (
    KEY,
    LayerShape,
    check_prunable,
    cut_layer,
    is_pruned,
    layer_shapes,
    reshape_layers,
    set_layer_shapes,
)
from ds_distill.models.loading import load_encoder, load_masked_lm, new_model
from ds_distill.models.saving import save_model_folder
from ds_distill.models.student_plan import plan_student
from ds_distill.tasks.catalog import TASKS
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder
from tests.unit.models.test_teacher import tiny_bert

PRUNABLE = [name for name, family in FAMILIES.items() if family.outputs]
SHAPES = [LayerShape(1, 23), LayerShape(0, 0)]
IDS = torch.tensor([[2, 7, 9, 11, 30, 3], [2, 8, 10, 12, 3, 3]])


@pytest.fixture(scope="module", params=PRUNABLE)
def encoder(request, tmp_path_factory):
    return save_encoder(request.param, tmp_path_factory.mktemp(request.param))


def save_shaped(encoder, folder, shapes=SHAPES):
    model = AutoModelForMaskedLM.from_pretrained(encoder).eval()
    set_layer_shapes(model.config, shapes)
    reshape_layers(model)
    save_model_folder(model, find_model_folder(str(encoder)).tokenizer, folder)
    return model


@pytest.mark.parametrize(
    ("heads", "columns"), [([1], [0, 5, 63]), ([], [3]), ([0, 1], []), ([], []), ([0, 1], list(range(64)))]
)
@torch.no_grad()
def test_a_cut_layer_computes_as_one_whose_other_inputs_are_zero(encoder, heads, columns):
    zeroed, cut = (AutoModelForMaskedLM.from_pretrained(encoder).eval() for _ in range(2))
    family, head = get_family(cut), head_size(cut)
    cut_layer(family, family.get_layers(cut)[1], head, heads, columns)
    attention, feed_forward = (family.get_layers(zeroed)[1].get_submodule(name).weight for name in family.outputs)
    gone = [number for number in range(attention.shape[1]) if number // head not in heads]
    attention[:, gone] = 0
    feed_forward[:, [number for number in range(feed_forward.shape[1]) if number not in columns]] = 0
    torch.testing.assert_close(cut(IDS).logits, zeroed(IDS).logits, rtol=1e-4, atol=1e-5)


def test_a_folder_with_shapes_loads_as_it_was_saved(encoder, tmp_path):
    model = save_shaped(encoder, tmp_path)
    loaded = load_masked_lm(str(tmp_path))
    assert type(loaded) is type(model) and layer_shapes(loaded.config) == SHAPES
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert load_masked_lm(str(tmp_path), hollow=True).device.type == "meta"
    hidden = get_family(model).get_encoder(model)(IDS).last_hidden_state
    assert torch.equal(load_encoder(str(tmp_path), bare=True)(IDS).last_hidden_state, hidden)
    other = new_model(loaded.config, head=True)
    assert {name: value.shape for name, value in other.state_dict().items()} == {
        name: value.shape for name, value in loaded.state_dict().items()
    }


@pytest.mark.parametrize("name", ["sst2", "squad"])
def test_a_head_of_a_task_is_put_on_pruned_layers(encoder, tmp_path, name):
    model = save_shaped(encoder, tmp_path)
    tuned = load_for_task(str(tmp_path), TASKS[name], "model", tuned=False).eval()
    hidden = get_family(model).get_encoder(model)(IDS).last_hidden_state
    torch.testing.assert_close(get_family(model).get_encoder(tuned)(IDS).last_hidden_state, hidden)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_encoder("bert", tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("entries", [7, [], [{"heads": 1, "feed_forward": 3}], [{"heads": 1}] * 2])
def test_entries_that_describe_no_model_are_refused(bert, tmp_path, entries):
    _refuses(bert, tmp_path, entries, f"config.json cannot be used .{KEY}.* must ")


@pytest.mark.parametrize("value", [-1, 65, 1.5, True, "3", None, 10**30])
def test_sizes_that_no_layer_can_have_are_refused(bert, tmp_path, value):
    entries = [{"heads": 1, "feed_forward": 3}, {"heads": 1, "feed_forward": value}]
    _refuses(bert, tmp_path, entries, rf"{KEY}\[1\].feed_forward = .*: must be a whole number, 0 to 64")


def test_weights_of_other_shapes_are_refused(bert, tmp_path):
    _refuses(bert, tmp_path, [{"heads": 1, "feed_forward": 23}] * 2, "lacks|disagree on the shape")
    _refuses(bert, tmp_path, [{"heads": 2, "feed_forward": 23}, {"heads": 0, "feed_forward": 0}], "disagree")
    _refuses(bert, tmp_path, None, "lacks|disagree on the shape")


def _refuses(encoder, folder, entries, message):
    save_shaped(encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {KEY: entries}))
    with pytest.raises(UserError, match=message):
        load_masked_lm(str(folder))


def test_a_family_without_prunable_layers_is_refused(tmp_path):
    save_encoder("mpnet", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {KEY: []}))
    with pytest.raises(UserError, match=f"{KEY} is not known of an mpnet"):
        load_masked_lm(str(tmp_path))
    with pytest.raises(UserError, match="give a model of one of the families bert, camembert, distilbert"):
        check_prunable(FAMILIES["mpnet"])


def test_a_student_whose_layers_share_weights_does_not_start_from_pruned_layers():
    teacher = tiny_bert(2).config
    set_layer_shapes(teacher, SHAPES)
    assert layer_shapes(plan_student(teacher, family="electra", num_layers=2)[1]) == SHAPES
    for key, value in (("family", "albert"), ("num_hidden_groups", 1)):
        message = rf"student\.{key} = {value}: the teacher's layers were pruned .* of an albert .* student\.init_layers"
        with pytest.raises(UserError, match=message):
            plan_student(teacher, **{key: value})
    assert not is_pruned(plan_student(teacher, num_hidden_groups=1, init_layers="random")[1])
