"""Weights whose names a training wrapper has lengthened still count as the model's; other weights do not."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from ds_distill.models.loading import load_masked_lm
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import FAMILIES, tiny_bert, tokens

LAYER = r"(layers?\.\d+\.)"
LEGACY = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
WRAPPERS = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "in parallel": lambda name: f"module.{name}",
    "of a LightningModule": lambda name: f"model.{name}",
    "of a module in two others": lambda name: f"student.net.{name}",
    "compiled, in parallel": lambda name: f"module._orig_mod.{name}",
    "its layers compiled": lambda name: re.sub(LAYER, r"\1_orig_mod.", name),
    "all compiled": lambda name: "_orig_mod." + re.sub(LAYER, r"\1_orig_mod.", name),
    "sharded, in checkpoints": lambda name: (
        "_fsdp_wrapped_module."
        + re.sub(
            r"\bembeddings\.",
            "_fsdp_wrapped_module.embeddings.",
            re.sub(LAYER, r"\1_fsdp_wrapped_module._checkpoint_wrapped_module.", name),
        )
    ),
    "compiled, with BERT's first names": lambda name: (
        "_orig_mod." + re.sub("LayerNorm.(weight|bias)", lambda match: LEGACY[match[0]], name)
    ),
}


def rename(file, change, **extra) -> None:
    weights = {change(name): tensor for name, tensor in load_file(file).items()}
    save_file(weights | extra, file, metadata={"format": "pt"})


# Names are read without wrappers whatever the family, so the quick tests have each wrapper with BERT, and each family
# with the wrapper that changes names at three places.
CASES = [
    pytest.param(
        *(wrapper, make),
        marks=() if make is tiny_bert or wrapper == "sharded, in checkpoints" else pytest.mark.long,
    )
    for wrapper in WRAPPERS
    for make in FAMILIES
]


@pytest.mark.parametrize(("wrapper", "make"), CASES)
def test_wrapped_weights_are_read_and_saved_without_the_wrapper(tmp_path, make, wrapper, capsys):
    make().save_pretrained(tmp_path)
    names, expected = set(load_file(tmp_path / "model.safetensors")), load_masked_lm(str(tmp_path))(tokens()).logits
    rename(tmp_path / "model.safetensors", WRAPPERS[wrapper], **{"optimizer.step": torch.ones(1)})
    capsys.readouterr()
    for _ in range(2):
        model = load_masked_lm(str(tmp_path))
    assert torch.equal(model(tokens()).logits, expected)
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("teacher =")]
    assert len(messages) == 1 and "names of its weights are read without" in messages[0], "said once"
    model.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == names


def test_a_wrapped_trunk_gets_a_head(tmp_path):
    BertModel(tiny_bert().config).save_pretrained(tmp_path)
    rename(tmp_path / "model.safetensors", WRAPPERS["compiled"])
    with pytest.raises(UserError, match="no masked-LM head"):
        load_masked_lm(str(tmp_path))
    encoder = load_file(tmp_path / "model.safetensors")["_orig_mod.embeddings.word_embeddings.weight"]
    assert torch.equal(load_masked_lm(str(tmp_path), new_head=True).bert.embeddings.word_embeddings.weight, encoder)


def test_plain_names_are_read_without_a_word(tmp_path, capsys):
    for model in (tiny_bert(), BertModel(tiny_bert().config)):
        model.save_pretrained(tmp_path)
        capsys.readouterr()
        load_masked_lm(str(tmp_path), new_head=True)
        assert "read without" not in capsys.readouterr().err


def test_weights_of_two_models_are_not_chosen_between(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    both = {f"{name}.{key}": tensor.clone() for name in ("teacher", "student") for key, tensor in weights.items()}
    save_file(both, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights \(student.bert.*\) are not those of a BertForMaskedLM"):
        load_masked_lm(str(tmp_path))


@pytest.mark.parametrize("hollow", [False, True])
def test_a_hollow_model_is_answered_as_a_whole_one(tmp_path, hollow):
    """The headers alone give names and shapes."""
    tiny_bert().save_pretrained(tmp_path)
    assert load_masked_lm(str(tmp_path), hollow=hollow).device.type == ("meta" if hollow else "cpu")
    rename(
        tmp_path / "model.safetensors", lambda name: name.replace("encoder.layer.1.output.dense.weight", "elsewhere")
    )
    with pytest.raises(UserError, match=r"the checkpoint lacks bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load_masked_lm(str(tmp_path), hollow=hollow)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="the weights cannot be read"):
        load_masked_lm(str(tmp_path), hollow=hollow)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_no_numbers_are_named_by_their_weights(tmp_path, value, dtype):
    tiny_bert().to(dtype).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    bad = ["bert.encoder.layer.2.output.dense.weight", "cls.predictions.bias"]
    for name in bad:
        weights[name].view(-1)[-1] = value
    weights["bert.pooler.dense.weight"] = torch.full(
        (32, 32), value, dtype=dtype
    )  # a masked-LM model does not read these
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_masked_lm(str(tmp_path), hollow=True)
    with pytest.raises(
        UserError, match=f"teacher = {tmp_path}: NaN or infinite values in the weights {bad[0]}, {bad[1]};"
    ):
        load_masked_lm(str(tmp_path))


def test_large_values_are_numbers(tmp_path):
    model = tiny_bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(3e38)  # finite, but their sum is not
    model.save_pretrained(tmp_path)
    load_masked_lm(str(tmp_path))
