"""Test families and teacher: parts add up to the model, nothing unfit loads, and nothing unfreezes."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    CamembertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MPNetForMaskedLM,
    RobertaForMaskedLM,
    XLMRobertaForMaskedLM,
)

from ds_distill.data.tokenizer import load_tokenizer, train_wordpiece
from ds_distill.exporters.model import load_source
from ds_distill.finetune.heads import load_for_task
from ds_distill.models.attention_mask import make_attention_mask
from ds_distill.models.families import FAMILIES as TABLE
from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.folder import find_model_folder, resolve_model_folder
from ds_distill.models.intermediates import LAST_HIDDEN
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.precision import choose_cpu_dtype
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher, weights_fingerprint
from ds_distill.tasks.catalog import get_task
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder


def randomised(model, seed=1):
    """Make every parameter random, since zero biases and unit norms would hide what a copy forgets."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1 if "norm" in name.lower() and name.endswith("weight") else noise)
    return model.eval()


def tiny_bert(layers=3, **changes):
    config = dict(
        vocab_size=101,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
    )
    return randomised(BertForMaskedLM(BertConfig(**(config | changes))))


def tiny_distilbert(layers=3):
    return randomised(
        DistilBertForMaskedLM(
            DistilBertConfig(
                vocab_size=101, dim=32, n_layers=layers, n_heads=4, hidden_dim=48, max_position_embeddings=24
            )
        )
    )


def tiny_roberta(layers=3, kind=RobertaForMaskedLM, **changes):
    config = dict(
        vocab_size=101,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=26,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
    )
    return randomised(kind(kind.config_class(**(config | changes))))


def tiny_xlm_roberta(layers=3):
    return tiny_roberta(layers, XLMRobertaForMaskedLM)


def tiny_camembert(layers=3):
    return tiny_roberta(layers, CamembertForMaskedLM)


def sizes(**changes):
    shape = {"vocab_size": 101, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    return shape | {"max_position_embeddings": 24} | changes


def tiny_deberta(layers=3, **changes):
    """Return a DeBERTa as v3 is: no positions and no token types, buckets of relative positions, shared projections."""
    config = sizes(
        num_hidden_layers=layers,
        position_biased_input=False,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
    )
    return randomised(DebertaV2ForMaskedLM(DebertaV2Config(**(config | changes))))


def tiny_albert(layers=3, **changes):
    """Of three layers, the first two share their weights; of four, the last two do as well."""
    config = sizes(num_hidden_layers=layers, num_hidden_groups=2, embedding_size=16)
    return randomised(AlbertForMaskedLM(AlbertForMaskedLM.config_class(**(config | changes))))


def tiny_electra(layers=3, **changes):
    config = sizes(num_hidden_layers=layers, embedding_size=16)
    return randomised(ElectraForMaskedLM(ElectraForMaskedLM.config_class(**(config | changes))))


def tiny_modernbert(layers=3, **changes):
    """Every third layer is global; in the others a token sees four to either side."""
    ids = {"pad_token_id": 0} | dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    config = sizes(num_hidden_layers=layers, local_attention=8, **ids)
    return randomised(ModernBertForMaskedLM(ModernBertConfig(**(config | changes))))


def tiny_mpnet(layers=3):
    kind = MPNetForMaskedLM
    return randomised(kind(kind.config_class(**sizes(num_hidden_layers=layers, max_position_embeddings=26))))


FAMILIES = [
    tiny_albert,
    tiny_bert,
    tiny_camembert,
    tiny_deberta,
    tiny_distilbert,
    tiny_electra,
    tiny_modernbert,
    tiny_mpnet,
    tiny_roberta,
    tiny_xlm_roberta,
]


def tokens(batch=3, length=12):
    return torch.randint(2, 101, (batch, length), generator=torch.Generator().manual_seed(2))


def padding_mask(batch=3, length=12):
    return torch.arange(length)[None] < torch.tensor([length, 7, 3])[:batch, None]


@pytest.fixture
def folder(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("mask", [None, padding_mask()])
def test_trunk_transform_decoder_are_the_model(make, mask):
    model, ids = make(), tokens()
    family, fired = get_family(model), []
    parent, name = family.decoder_parent_and_name(model)
    assert getattr(parent, name) is model.get_output_embeddings()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: fired.append(module))
    with torch.no_grad():
        hidden = family.get_encoder(model)(input_ids=ids, attention_mask=mask).last_hidden_state
        logits = getattr(parent, name)(family.mlm_transform(model, hidden))
        parts = set(fired)
        fired.clear()
        expected = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits, expected)
    owners = {module for module in model.modules() if module._parameters}
    # BERT's cls.predictions owns only the bias that it shares with its decoder.
    assert owners & set(fired) - parts <= {parent}
    assert family.count_layers(model) == 3


@pytest.mark.parametrize("make", [make for make in FAMILIES if make is not tiny_deberta])  # which is refused
def test_a_document_of_a_block_computes_what_it_does_alone_at_its_positions(make):
    """Its model sees the document's tokens only, without a mask, so nothing of the others can reach it."""
    model, ids = make(), tokens()
    first = get_family(model).first_position(model.config)
    numbers = torch.stack([torch.arange(12) // length for length in (5, 12, 3)])
    targets = Teacher(model).targets(ids, (numbers[:, :, None] == numbers[:, None])[:, None])
    logits = torch.nn.functional.linear(targets.decoder_input, targets.decoder_weight, targets.decoder_bias)
    for row, number in torch.stack([torch.arange(3)[:, None].expand(3, 12), numbers], -1).flatten(0, 1).unique(dim=0):
        places = (numbers[row] == number).nonzero()[:, 0]
        with torch.no_grad():
            alone = model(input_ids=ids[None, row, places], position_ids=first + places[None]).logits[0]
        assert (logits[row, places] - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_a_mask_that_is_added_is_finite_in_16_bit_where_a_query_sees_nothing():
    """A padding token's own outputs must be numbers: in attention they are multiplied by 0."""
    model = tiny_mpnet().half()
    mask = make_attention_mask(model, torch.zeros(1, 1, 2, 2, dtype=torch.bool), torch.zeros(1, 2))
    for score in (-300.0, 300.0):
        weights = (mask + torch.tensor(score, dtype=torch.float16)).softmax(-1)
        assert torch.equal(weights, torch.full_like(weights, 0.5))


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("t5", ""),
        ("deberta", "; nearest name: deberta-v2"),
        ("albrt", "; nearest name: albert"),
        ("BERT", "; nearest name: bert"),
        ("xlnet", "; nearest name: mpnet"),
    ],
)
def test_unknown_family_is_named(tmp_path, given, nearest):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": given}))
    known = re.escape(f"; supported: {', '.join(TABLE)}{nearest}")
    with pytest.raises(UserError, match=rf"model_type is '{given}'{known}$"):
        load_masked_lm(str(tmp_path))
    with pytest.raises(UserError, match=rf"model_type = '{given}': not a supported encoder{known}$"):
        get_family_by_type(given)


@pytest.mark.parametrize("make", FAMILIES)
def test_teacher_outputs_make_the_logits(tmp_path, make):
    make().save_pretrained(tmp_path)
    teacher, model, ids, mask = (
        Teacher(load_masked_lm(str(tmp_path))),
        load_masked_lm(str(tmp_path)),
        tokens(),
        padding_mask(),
    )
    for attention_mask in (None, mask):
        outputs = teacher.targets(ids, attention_mask)
        logits = torch.nn.functional.linear(outputs.decoder_input, outputs.decoder_weight, outputs.decoder_bias)
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=attention_mask, output_hidden_states=True)
        assert torch.equal(logits, expected.logits)
        assert torch.equal(outputs.states[LAST_HIDDEN], expected.hidden_states[-1])
        assert not outputs.states[LAST_HIDDEN].requires_grad
    assert teacher.max_positions == 24
    with pytest.raises(ValueError, match="25 tokens: the teacher has 24"):
        teacher.targets(tokens(1, 25), None)


def test_teacher_is_frozen_and_unchanged_by_training(folder):
    teacher = Teacher(load_masked_lm(str(folder)))
    before = weights_fingerprint(teacher.model)
    student = build_student(teacher.model, dropout=0.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    target = teacher.targets(tokens(), None).states[LAST_HIDDEN]
    (
        (student(tokens()).logits ** 2).mean() + (student.distilbert(tokens()).last_hidden_state - target).pow(2).mean()
    ).backward()
    optimizer.step()
    teacher.assert_frozen()
    assert weights_fingerprint(teacher.model) == before == weights_fingerprint(load_masked_lm(str(folder)))
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert weights_fingerprint(load_masked_lm(str(folder)).bfloat16()) != before


def test_thawed_teacher_is_caught(folder):
    teacher = Teacher(load_masked_lm(str(folder)))
    teacher.model.bert.encoder.layer[0].output.dropout.train()
    with pytest.raises(RuntimeError, match=r"layer\.0\.output\.dropout is in train mode"):
        teacher.assert_frozen()
    teacher.model.eval().cls.predictions.transform.dense.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match="transform.dense.weight requires a gradient"):
        teacher.assert_frozen()


def test_tied_weights_share_storage(folder):
    for model in (load_masked_lm(str(folder)), Teacher(load_masked_lm(str(folder)).bfloat16()).model):
        assert (
            model.cls.predictions.decoder.weight.data_ptr() == model.bert.embeddings.word_embeddings.weight.data_ptr()
        )


def test_fp16_checkpoint_loads_in_fp32(tmp_path):
    tiny_bert().half().save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load_masked_lm(str(tmp_path)).parameters()} == {torch.float32}


def test_legacy_layer_norm_names(folder):
    expected = load_masked_lm(str(folder))(tokens()).logits
    weights = load_file(folder / "model.safetensors")
    legacy = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert legacy.keys() != weights.keys()
    save_file(legacy, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(load_masked_lm(str(folder))(tokens()).logits, expected)


def test_headless_folder_is_refused(tmp_path):
    BertModel(tiny_bert().config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no masked-LM head.*cls\.predictions\.transform\.dense\.weight"):
        load_masked_lm(str(tmp_path))


def test_incomplete_trunk_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load_masked_lm(str(folder))


def test_wrong_shapes_are_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    with pytest.raises(UserError, match="word_embeddings.weight"):
        load_masked_lm(str(folder))


def test_missing_parts_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_masked_lm(str(tmp_path / "nowhere"))
    (folder / "model.safetensors").write_bytes(b"\x00" * 7)
    with pytest.raises(UserError, match="cannot be read"):
        load_masked_lm(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="only pytorch_model.bin.*pickled"):
        load_masked_lm(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_masked_lm(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json"):
        load_masked_lm(str(folder))


def test_choose_cpu_dtype_is_one_of_two_and_stays():
    assert choose_cpu_dtype() in (torch.float32, torch.bfloat16)
    assert choose_cpu_dtype() is choose_cpu_dtype()


def test_the_probe_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    choose_cpu_dtype.__wrapped__()
    assert torch.get_num_threads() == before


def test_the_output_folder_of_a_run_stands_for_its_model(tmp_path):
    """This holds wherever a model is needed, even if the folder has been moved since."""
    run = tmp_path / "moved" / "run"
    for place, task in (("export", False), ("seed=1/model", True)):
        model = run / ("tuned" if task else "") / place
        kind = BertForSequenceClassification if task else BertForMaskedLM
        kind(tiny_bert(vocab_size=256).config).save_pretrained(model)
        train_wordpiece(["the small model reads what a large one wrote"] * 3, 256, model)
        (model.parents[1] if task else model.parent).joinpath("summary.json").write_text(
            json.dumps({"export": f"runs/run/{place}"})
        )
    assert resolve_model_folder(str(run)) == run / "export" == find_model_folder(str(run), "--from").path
    assert load_masked_lm(str(run)).config.hidden_size == 32
    assert (
        load_source(str(run)).head == "masked-lm"
        and load_source(str(run / "tuned")).folder == run / "tuned" / "seed=1" / "model"
    )
    assert load_for_task(str(run / "tuned"), get_task("sst2"), "teacher", tuned=True).num_labels == 2
    assert len(load_tokenizer(str(run))) == len(load_tokenizer(run / "export"))
    with pytest.raises(UserError, match="no config.json in the folder"):
        find_model_folder(str(tmp_path / "moved")).check_files()


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_how_a_checkpoints_program_ran_it_does_not_matter(family, tmp_path):
    """A length of 10 is no multiple of 7, where transformers would raise."""
    save_encoder(family, tmp_path)
    usual = load_masked_lm(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    unusual = {
        "chunk_size_feed_forward": 7,
        "gradient_checkpointing": True,
        "output_attentions": True,
        "output_hidden_states": True,
        "return_dict": False,
        "torchscript": True,
        "use_cache": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | unusual))
    ids = torch.arange(20).view(2, 10)
    loaded = load_masked_lm(str(tmp_path))
    assert loaded.config.to_dict() == usual.config.to_dict() and not loaded.is_gradient_checkpointing
    assert torch.equal(loaded(ids).logits, usual(ids).logits)
    student = build_student(loaded, num_layers=2)
    assert student.config.chunk_size_feed_forward == 0 and not student.is_gradient_checkpointing
    student(ids)
    for other in (
        load_for_task(str(tmp_path), get_task("sst2"), "--model", tuned=False),
        load_source(str(tmp_path)).model,
    ):
        assert other.config.chunk_size_feed_forward == 0 and not other.is_gradient_checkpointing
        other(ids)


@pytest.mark.parametrize("path", ["/no/such/folder", "./small", "~/small", "a/b/c", "runs/old run"])
def test_only_what_can_be_a_hub_name_is_offered_for_download(path):
    where = re.escape(f"no such folder; correct the path (relative ones start at {Path.cwd()})")
    with pytest.raises(UserError, match=f"{where}$"):
        resolve_model_folder(path)
    for name in ("acme/small-1.5", "small"):
        with pytest.raises(UserError, match=f"`hf download {name}`"):
            resolve_model_folder(name)
