"""Test the table of known teachers against transformers' config classes and against real modules without weights."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, DistilBertConfig

from ds_distill.estimate.known_models import KNOWN_MODELS, find_known_model
from ds_distill.models.families import get_family_by_type


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_a_known_model_has_the_parameters_of_a_real_module(name):
    keys, parameters = KNOWN_MODELS[name]
    config = find_known_model(name).config
    with torch.device("meta"):
        assert AutoModelForMaskedLM.from_config(config).num_parameters() == parameters
    # Each key is one that the config class knows; transformers would keep a mistyped one silently.
    # DeBERTa reads three that its config class does not name; each of them decides about parameters.
    unnamed = {"position_buckets", "norm_rel_ebd", "share_att_key"} if keys["model_type"] == "deberta-v2" else set()
    assert set(keys) - unnamed <= set(AutoConfig.for_model(keys["model_type"]).to_dict())
    assert {key: config.to_dict()[key] for key in keys} == keys
    dims = get_family_by_type(config.model_type).dims(config)
    assert (dims.depth, dims.width) == (config.num_hidden_layers, config.hidden_size)


def test_base_shapes_are_the_defaults_of_their_config_classes():
    for name, config in (
        ("google-bert/bert-base-uncased", BertConfig(architectures=["BertForMaskedLM"])),
        ("distilbert/distilbert-base-uncased", DistilBertConfig(architectures=["DistilBertForMaskedLM"])),
    ):
        assert find_known_model(name).config.to_dict() == config.to_dict()


def test_a_known_model_is_found_without_its_owner_and_no_other_is():
    assert find_known_model("roberta-large").name == "FacebookAI/roberta-large"
    assert find_known_model("large") is None and find_known_model("someone/roberta-large") is None
