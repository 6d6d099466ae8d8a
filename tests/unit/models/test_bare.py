"""Test encoders without a masked-LM head: what is loaded of a folder, what of a teacher runs, and their students."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, ElectraForPreTraining
from transformers.models.albert.modeling_albert import AlbertLayer

from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.intermediates import LAST_HIDDEN, Site, run_encoder
from ds_distill.models.loading import load_encoder, load_teacher, no_pooler
from ds_distill.models.student import build_student
from ds_distill.models.student_plan import plan_student
from ds_distill.models.teacher import Teacher, needed_part, weights_fingerprint
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import (
    FAMILIES,
    padding_mask,
    randomised,
    tiny_albert,
    tiny_bert,
    tiny_electra,
    tiny_roberta,
    tokens,
)


def last_states(model, mask=None):
    with torch.no_grad():
        return run_encoder(model, tokens(), mask)[0]


@pytest.mark.parametrize("make", FAMILIES)
def test_a_folder_without_the_head_gives_its_encoder(make, tmp_path):
    """A classifier's, and a bare encoder's with a pooler: the states are the same as those of the masked-LM model."""
    model = make()
    family, expected = get_family(model), last_states(model)
    model.save_pretrained(tmp_path / "whole")
    for name, auto in (("classifier", AutoModelForSequenceClassification), ("bare", AutoModel)):
        other = auto.from_config(model.config)
        family.get_encoder(other).load_state_dict(family.get_encoder(model).state_dict(), strict=False)
        other.save_pretrained(tmp_path / name)
        loaded = load_encoder(str(tmp_path / name))
        assert type(loaded) is type(family.get_encoder(model)) and not family.has_head(loaded)
        assert torch.equal(last_states(loaded), expected) and not loaded.training
        assert not any("pooler" in key or "classifier" in key for key, _ in loaded.named_parameters())
        with pytest.raises(UserError, match=r"no masked-LM head: .* or set losses.kl = 0 and losses.mlm = 0"):
            load_teacher(find_model_folder(str(tmp_path / name)), logits=True)
        assert load_encoder(str(tmp_path / name), hollow=True).device.type == "meta"
    whole = load_encoder(str(tmp_path / "whole"))
    assert family.has_head(whole) and weights_fingerprint(whole) == weights_fingerprint(model)
    bare = load_encoder(str(tmp_path / "whole"), bare=True)
    assert weights_fingerprint(bare) == weights_fingerprint(load_encoder(str(tmp_path / "bare")))


def test_an_electra_that_tells_replaced_tokens_teaches_without_its_head(tmp_path):
    teacher = tiny_electra()
    discriminator = ElectraForPreTraining(teacher.config)
    discriminator.electra.load_state_dict(teacher.electra.state_dict())
    discriminator.save_pretrained(tmp_path)
    loaded = load_teacher(find_model_folder(str(tmp_path)), logits=False)
    assert not get_family(loaded).has_head(loaded) and torch.equal(last_states(loaded), last_states(teacher))
    with pytest.raises(UserError, match=r"no masked-LM head: .*generator_lm_head.bias.* or set losses.kl = 0"):
        load_teacher(find_model_folder(str(tmp_path)), logits=True)


def test_an_encoder_that_lacks_a_layer_is_refused(tmp_path):
    model = tiny_bert()
    state = {key: value for key, value in model.bert.state_dict().items() if "layer.1.attention.self.key" not in key}
    model.bert.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="the checkpoint lacks .*layer.1.attention.self.key.*; give a complete"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("make", FAMILIES)
def test_a_teacher_runs_up_to_the_highest_layer_that_is_recorded(make):
    whole, ids, mask = make(5), tokens(), padding_mask()
    family, sites = get_family(whole), [Site("hidden", 2), Site("hidden", 0)]
    part = needed_part(copy.deepcopy(whole), sites, head=False)
    assert family.count_layers(part) == 3 and not family.has_head(part)
    targets = Teacher(part).targets(ids, mask, sites=sites)
    with torch.no_grad():
        expected = whole(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert all(torch.equal(targets.states[site], expected[site.layer + 1]) for site in sites)
    assert targets.decoder_input is None and targets.decoder_weight is None
    # the encoder's output is that of all layers, and logits need the head
    assert family.count_layers(needed_part(copy.deepcopy(whole), [*sites, LAST_HIDDEN], head=False)) == 5
    assert needed_part(whole, sites, head=True) is whole and family.count_layers(whole) == 5


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_a_teacher_whose_layers_share_weights_stops_there_too(groups):
    whole, ids, mask = tiny_albert(6, num_hidden_groups=groups), tokens(), padding_mask()
    for highest in range(6):
        sites = [Site(quantity, layer) for quantity in ("query", "value", "hidden") for layer in range(highest + 1)]
        part = needed_part(copy.deepcopy(whole), sites, head=False)
        runs = []
        for layer in part.encoder.modules():
            if isinstance(layer, AlbertLayer):
                layer.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        states = Teacher(part).targets(ids, mask, sites=sites).states
        with torch.no_grad():
            _, expected = run_encoder(whole, ids, mask, sites=sites)
        assert len(runs) == highest + 1 and all(torch.equal(states[site], expected[site]) for site in sites)
    assert whole.config.num_hidden_layers == 6 and whole.config.num_hidden_groups == groups


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("width", [32, 16])
def test_students_start_alike_with_and_without_heads(make, width):
    model = make(4)
    family, options = get_family(model), {"init_layers": [0, 3], "hidden_size": width}
    encoder = copy.deepcopy(family.get_encoder(model))
    whole = build_student(model, **options)
    student_family, expected = get_family(whole), get_family(whole).get_encoder(whole).state_dict()
    new_head = build_student(encoder, **options)
    for student in (build_student(model, **options, head=False), build_student(encoder, **options, head=False)):
        assert not student_family.has_head(student) and student.training
        state = student.state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    state = student_family.get_encoder(new_head).state_dict()
    assert all(torch.equal(state[key], expected[key]) for key in state)
    tied = student_family.get_decoder(new_head).weight
    assert tied is new_head.get_input_embeddings().weight
    again = build_student(encoder, **options).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in new_head.state_dict().items())


def test_a_student_forgets_its_teachers_task():
    config = tiny_roberta().config
    config.num_labels, config.finetuning_task, config.problem_type = 3, "mnli", "regression"
    _, student = plan_student(config)
    assert "finetuning_task" not in student.to_dict() and student.num_labels == 2 and student.problem_type is None
    assert config.num_labels == 3 and config.finetuning_task == "mnli"


@pytest.mark.parametrize("frozen", ["", "lm_head."])
@pytest.mark.parametrize("kind", [AutoModel, AutoModelForMaskedLM])
def test_a_checkpoint_is_recognized_by_its_names(kind, frozen, tmp_path):
    """Also in a stage that leaves the head as it is."""
    from ds_distill.training.weights import trained_class

    options = no_pooler("roberta") if kind is AutoModel else {}
    model = randomised(kind.from_config(tiny_roberta().config, **options))
    (tmp_path / "groups.json").touch()
    every = [f"model.{name}" for name, _ in model.named_parameters()]
    kept = [name for name in every if frozen and name.startswith(f"model.{frozen}")]
    names = [[name for name in every if name not in kept], ["matches.mse.projection.weight"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ds_distill.training.weights.read_manifest", lambda folder: {"groups": names, "frozen": kept})
        assert type(trained_class(tmp_path, model.config)) is type(model)


def test_the_export_of_a_bare_encoder_reloads(tmp_path):
    from ds_distill.data.tokenizer import train_wordpiece
    from ds_distill.exporters.huggingface import export

    student = build_student(tiny_roberta(), head=False)
    tokenizer = train_wordpiece(["a few words of text"], 200, tmp_path / "tokenizer")
    weights = {key: value.detach() for key, value in student.named_parameters()}
    folder = export(weights, student, tokenizer, tmp_path / "out", "made with ds-distill")
    reloaded = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    assert reloaded.config.architectures == ["RobertaModel"]
    assert torch.equal(last_states(reloaded), last_states(student.eval()))
    assert load_file(folder / "model.safetensors").keys() == weights.keys()
