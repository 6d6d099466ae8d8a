"""Test that weights of the encoder that config.json has no place for are refused, and those of other heads are not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertForPreTraining,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForPreTraining,
    ElectraForPreTraining,
)

from ds_distill.finetune.heads import load_for_task
from ds_distill.models.families import FAMILIES, get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.layer_shapes import KEY, LayerShape
from ds_distill.models.loading import load_encoder, load_masked_lm
from ds_distill.tasks.catalog import TASKS
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder
from tests.unit.models.test_layer_shapes import save_shaped

CLASSES = (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification)
PRETRAINING = {"albert": AlbertForPreTraining, "bert": BertForPreTraining, "electra": ElectraForPreTraining}
# what published files hold within the encoder, beside its weights
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids", "embeddings.word_embeddings._weight")
HEADS = (  # of other classes, DeBERTa's pretraining, TinyBERT's training, SimCSE's head, a sentence embedder's layer
    "cls.seq_relationship.weight",
    "discriminator_predictions.dense.weight",
    "lm_predictions.lm_head.dense.weight",
    "mask_predictions.dense.weight",
    "sop_classifier.classifier.weight",
    "fit_denses.0.weight",
    "mlp.dense.weight",
    "linear.weight",
)


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, tmp_path_factory):
    return save_encoder(request.param, tmp_path_factory.mktemp(request.param))


def add_weights(folder, names) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({name: torch.ones(3) for name in names} | weights, file, metadata={"format": "pt"})


def change_config(folder, **keys) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def layers_within(family) -> str:
    """Return the path of the layers within the encoder."""
    return family.layers.removeprefix(f"{family.encoder}.")


def readers(folder):
    """Return what loads a folder, without a head and with one: functions without arguments."""
    return (
        lambda: load_encoder(str(folder), bare=True, hollow=True),
        lambda: load_masked_lm(str(folder), new_head=True, hollow=True),
    )


def test_other_heads_and_what_published_files_hold_beside_the_weights_are_left_out(encoder, tmp_path):
    model_type = json.loads((encoder / "config.json").read_text())["model_type"]
    for kind in (*CLASSES, *(PRETRAINING[name] for name in PRETRAINING if name == model_type)):
        folder = tmp_path / kind.__name__
        shutil.copytree(encoder, folder)
        model = kind.from_pretrained(encoder)
        model.save_pretrained(folder)
        family = get_family(model)
        rotary = f"{layers_within(family)}.0.attn.rotary_emb.inv_freq"
        add_weights(folder, [*HEADS, *(family.prefix(model) + name for name in (*BUFFERS, rotary))])
        for load in readers(folder):
            load()


@pytest.mark.parametrize(("kind", "wrapper"), [(AutoModel, ""), (AutoModelForMaskedLM, ""), (AutoModel, "module.")])
def test_layers_beyond_those_of_the_config_are_refused(encoder, tmp_path, kind, wrapper):
    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    model = kind.from_pretrained(encoder)
    family = get_family(model)
    if family.names.groups:  # all layers share the weights of one group
        model.config.num_hidden_groups = 2
        model = kind.from_config(model.config)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({wrapper + name: x for name, x in load_file(file).items()}, file, metadata={"format": "pt"})
    key = family.names.groups or family.names.depth
    aliases = {"num_hidden_layers": 1} if key == "n_layers" else {}
    change_config(tmp_path, **{key: 1, "layer_types": None}, **aliases)
    message = rf"{key} = 1 in config.json has no place for .*{layers_within(family)}\.1\..*; restore the config.json"
    for load in readers(tmp_path):
        with pytest.raises(UserError, match=message):
            load()


def test_a_model_with_a_new_head_of_a_task_keeps_all_layers(tmp_path):
    bert = save_encoder("bert", tmp_path)
    load_for_task(str(bert), TASKS["sst2"], "model", tuned=False)
    change_config(bert, num_hidden_layers=1)
    with pytest.raises(UserError, match="num_hidden_layers = 1 in config.json has no place for"):
        load_for_task(str(bert), TASKS["sst2"], "model", tuned=False)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (AutoModel, "embeddings.second.weight"),
        (AutoModelForMaskedLM, "{layers}.0.added.weight"),
        (AutoModel, "{first}.0.norm.weight"),
    ],
)
def test_any_other_weight_of_the_encoder_is_refused(encoder, tmp_path, kind, name):
    shutil.copytree(encoder, tmp_path, dirs_exist_ok=True)
    model = kind.from_pretrained(encoder)
    model.save_pretrained(tmp_path)
    layers = layers_within(get_family(model))
    name = name.format(layers=layers, first=layers.partition(".")[0])
    add_weights(tmp_path, [get_family(model).prefix(model) + name])
    for load in readers(tmp_path):
        with pytest.raises(UserError, match=f"config.json has no place for the encoder's weights {name}; restore"):
            load()


@pytest.mark.parametrize("shape", [LayerShape(0, 64), LayerShape(2, 0), LayerShape(0, 0)])
def test_pruned_layers_without_heads_or_columns_do_not_hide_weights(tmp_path, shape):
    bert = save_encoder("bert", tmp_path / "bert")
    entries = [LayerShape(2, 64)._asdict(), shape._asdict()]
    change_config(bert, **{KEY: entries})
    for load in readers(bert):
        with pytest.raises(UserError, match=rf"{KEY}\[1\] = {{.*}} in config.json has no place for"):
            load()
    change_config(bert, **{KEY: None})
    model = save_shaped(bert, tmp_path / "pruned", [LayerShape(2, 64), shape])
    assert load_masked_lm(str(tmp_path / "pruned")).num_parameters() == model.num_parameters()


def test_sizes_that_no_model_can_have_are_refused_by_their_name(encoder, tmp_path):
    (tmp_path / "config.json").write_text((encoder / "config.json").read_text())
    names = FAMILIES[json.loads((encoder / "config.json").read_text())["model_type"]].names
    for key in (*names.dims[:4], "vocab_size", "max_position_embeddings"):
        for value in (0, -2, 1.5, True, "2", None, [2]):
            _refuses(tmp_path, encoder, {key: value}, rf"{key} = .*: must be a whole number, 1 or more")
    for key, value in ((names.heads, 7), (names.width, 33)):
        _refuses(tmp_path, encoder, {key: value}, f"{names.heads} = .*: must divide {names.width} = ")


def _refuses(folder, encoder, keys, message):
    (folder / "config.json").write_text((encoder / "config.json").read_text())
    change_config(folder, **keys)
    with pytest.raises(UserError, match=rf"config.json cannot be used \({message}.*\); restore it"):
        assert find_model_folder(str(folder)).config


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("bert", {"type_vocab_size": -1}, "type_vocab_size = -1: must be a whole number, 0 or more"),
        ("distilbert", {"num_attention_heads": 0}, "num_attention_heads = 0: must be a whole number, 1 or more"),
        ("electra", {"embedding_size": 0}, "embedding_size = 0: must be a whole number, 1 or more"),
        ("albert", {"num_hidden_groups": 0}, "num_hidden_groups = 0: must be 1 to num_hidden_layers"),
        ("modernbert", {"global_attn_every_n_layers": 0}, "global_attn_every_n_layers = 0: must be"),
        ("mpnet", {"relative_attention_num_buckets": 0}, "relative_attention_num_buckets = 0: must be"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings = 2: must be 3 or more"),
    ],
)
def test_sizes_of_a_family_of_its_own_are_refused(tmp_path, family, keys, message):
    save_encoder(family, tmp_path)
    change_config(tmp_path, **keys)
    with pytest.raises(UserError, match=message):
        assert find_model_folder(str(tmp_path)).config


def test_a_family_without_token_types_may_say_so(tmp_path):
    save_encoder("deberta-v2", tmp_path)
    change_config(tmp_path, type_vocab_size=0)
    assert find_model_folder(str(tmp_path)).config.type_vocab_size == 0


@pytest.mark.parametrize(
    "name", ["lora_A.weight", "lora_B.default.weight", "base_layer.weight", "adapters.x.down.weight"]
)
@pytest.mark.parametrize("is_beside", [True, False])
def test_adapters_that_are_not_merged_are_named_as_such(tmp_path, name, is_beside):
    """Beside the weights that they change, or with those under another name."""
    folder = save_encoder("bert", tmp_path)
    changed = "bert.encoder.layer.0.attention.self.query"
    add_weights(folder, [f"{changed}.{name}"])
    if not is_beside:
        weights = load_file(folder / "model.safetensors")
        weights[f"{changed}.base_layer.weight"] = weights.pop(f"{changed}.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for read in (load_masked_lm, load_encoder):
        with pytest.raises(UserError, match=r"adapters that are not merged \(.*; merge them, with merge_and_unload"):
            read(str(folder))
