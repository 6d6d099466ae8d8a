"""Test students of another class than their teacher's: what they take over, and that exports compute the same."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    CamembertForMaskedLM,
    XLMRobertaForMaskedLM,
)

from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.estimate.estimate import Estimator
from ds_distill.estimate.hardware import DEVICES
from ds_distill.estimate.known_models import find_known_model
from ds_distill.exporters.huggingface import export
from ds_distill.models.families import get_family
from ds_distill.models.families.students import get_student_class
from ds_distill.models.folder import find_model_folder
from ds_distill.models.intermediates import LAST_HIDDEN, run_encoder
from ds_distill.models.loading import load_encoder, no_pooler
from ds_distill.models.student import build_student
from ds_distill.models.student_plan import plan_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Data, Recipe, Student
from ds_distill.utils.errors import UserError
from tests.tiny import FAMILIES, save_encoder
from tests.unit.models.test_teacher import (
    padding_mask,
    randomised,
    tiny_albert,
    tiny_bert,
    tiny_deberta,
    tiny_distilbert,
    tiny_electra,
    tiny_modernbert,
    tiny_mpnet,
    tiny_roberta,
    tokens,
)

EPS = 1e-12  # DistilBERT has no other


def mpnet_without_bias(layers: int):
    model = tiny_mpnet(layers)
    model.config.layer_norm_eps = EPS
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = EPS
    torch.nn.init.zeros_(model.mpnet.encoder.relative_attention_bias.weight)
    return model


def deberta_without_relative_positions(layers: int):
    """Its scores are still divided by more than those of a BERT."""
    return tiny_deberta(layers, relative_attention=False, position_biased_input=True, layer_norm_eps=EPS)


SAME_LAYERS = {
    "bert": lambda layers: tiny_bert(layers),
    "camembert": lambda layers: tiny_roberta(layers, CamembertForMaskedLM, layer_norm_eps=EPS),
    "deberta-v2": deberta_without_relative_positions,
    "distilbert": lambda layers: tiny_distilbert(layers),
    "electra": lambda layers: tiny_electra(layers, embedding_size=32),
    "mpnet": mpnet_without_bias,
    "roberta": lambda layers: tiny_roberta(layers, layer_norm_eps=EPS),
    "xlm-roberta": lambda layers: tiny_roberta(layers, XLMRobertaForMaskedLM, layer_norm_eps=EPS),
}


def read_tokens() -> torch.Tensor:
    """Return ids [3, 12] without those of padding, after which some families count positions anew."""
    return tokens().clamp(min=5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "albert"])
@pytest.mark.parametrize("name", SAME_LAYERS)
def test_a_copy_computes_what_its_teacher_does(name, family, capsys):
    teacher = SAME_LAYERS[name](3)
    student = build_student(teacher, init_layers=[0, 1, 2], family=family).eval()
    assert student.config.model_type == family and "new in it" not in capsys.readouterr().err
    real = padding_mask()
    with torch.no_grad():
        wanted, given = (
            model(read_tokens(), attention_mask=real.long(), output_hidden_states=True) for model in (teacher, student)
        )
    for theirs, own in zip((*wanted.hidden_states, wanted.logits), (*given.hidden_states, given.logits), strict=True):
        assert (own - theirs)[real].abs().max() <= 2e-5 * theirs.abs().max()
    bare = build_student(teacher, init_layers=[0, 1, 2], family=family, head=False).eval()
    with torch.no_grad():
        hidden = bare(read_tokens(), attention_mask=real.long()).last_hidden_state
    assert torch.equal(hidden[real], given.hidden_states[-1][real])


@pytest.mark.parametrize(
    ("teacher", "family"),
    [(tiny_electra(3), "albert"), (tiny_albert(3, hidden_act="gelu"), "electra"), (tiny_albert(3), "albert")],
)
def test_embeddings_and_their_projection_go_to_a_class_that_has_one(teacher, family, capsys):
    """Also where layers share weights in the teacher, and have weights of their own in the student."""
    student = build_student(teacher, init_layers=[0, 1, 2], family=family).eval()
    assert student.config.model_type == family and "new in it" not in capsys.readouterr().err
    assert student.config.embedding_size == 16
    with torch.no_grad():
        wanted, given = (model(read_tokens()).logits for model in (teacher, student))
    assert (given - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_a_projection_that_a_class_does_not_have_takes_the_embeddings_with_it(capsys):
    for family in ("bert", "electra"):
        teacher = tiny_albert(3, embedding_size=32)
        student = build_student(teacher, init_layers=[0, 1, 2], family=family)
        assert "new in it: word embeddings, position embeddings, masked-LM head" in capsys.readouterr().err
        theirs = [group.ffn.weight for group in get_family(teacher).get_layers(teacher)]
        own = [layer.intermediate.dense.weight for layer in get_family(student).get_layers(student)]
        assert all(torch.equal(own[layer], theirs[group]) for layer, group in enumerate((0, 0, 1)))


@pytest.mark.parametrize("make", [tiny_mpnet, tiny_deberta])
def test_attention_that_a_student_cannot_have_is_said(make, capsys):
    teacher = make(4)
    student = build_student(teacher, init_layers=[3, 0], family="bert", head=False)
    said = capsys.readouterr().err
    assert "it has no place for the" in said and "relative position" in said
    value = get_family(teacher).projections[2]
    theirs = get_family(teacher).get_layers(teacher)[3].get_submodule(value).weight
    assert torch.equal(student.encoder.layer[0].attention.self.value.weight, theirs)
    has_positions = get_family(teacher).has_positions(teacher.config)
    assert ("new in it: position embeddings" in said) != has_positions
    positions = student.embeddings.position_embeddings.weight
    if has_positions:
        assert torch.equal(positions, teacher.mpnet.embeddings.position_embeddings.weight[2:])


@pytest.mark.parametrize(("make", "family"), [(tiny_modernbert, "bert"), (tiny_bert, "modernbert")])
def test_where_layers_differ_a_student_starts_from_the_word_embeddings(make, family, capsys):
    teacher = make(4)
    student = build_student(teacher, family=family)
    assert "layers" in capsys.readouterr().err
    own, theirs = (model.get_input_embeddings().weight for model in (student, teacher))
    assert torch.equal(own, theirs) and get_family(student).get_decoder(student).weight is own
    layer_map, config = plan_student(teacher.config, family=family, num_layers=7, intermediate_size=400)
    dims = get_family(student).dims(config)
    assert layer_map is None and (dims.depth, dims.feed_forward) == (7, 400)
    with pytest.raises(UserError, match=rf"student\.init_layers = \[0, 2\]: the layers of a .* of a {family}; leave"):
        plan_student(teacher.config, family=family, init_layers=[0, 2])
    with pytest.raises(UserError, match=r"student\.init_layers = 'evry_other': give every_other, inner"):
        plan_student(teacher.config, family=family, init_layers="evry_other")
    start = build_student(teacher, family=family, init_layers="random").get_input_embeddings().weight
    assert not torch.equal(start, theirs)


def test_a_modernberts_layers_alternate_in_a_student_of_any_teacher():
    config = plan_student(tiny_roberta().config, family="modernbert", num_layers=5)[1]
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    assert config.layer_types == [*kinds, *kinds[:2]] and config.max_position_embeddings == 24
    assert (config.pad_token_id, config.bos_token_id, config.cls_token_id) == (1, 0, 0)


def test_embeddings_of_another_width_stay_new(capsys):
    teacher = tiny_electra(4, embedding_size=16)
    student = build_student(teacher, family="bert", head=False)
    assert "new in it: word embeddings, position embeddings" in capsys.readouterr().err
    assert torch.equal(student.encoder.layer[1].output.dense.bias, teacher.electra.encoder.layer[3].output.dense.bias)
    teacher = tiny_deberta(4, embedding_size=16)
    student = build_student(teacher, family="distilbert", head=False)
    assert "new in it: word embeddings, position embeddings" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "albert", "modernbert"])
def test_a_narrower_student_of_another_class_starts_from_the_first_columns(family):
    teacher = tiny_roberta(4)
    student = build_student(teacher, family=family, hidden_size=16, head=False)
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight[:, :16])
    assert student(read_tokens()).last_hidden_state.shape == (3, 12, 16)


def test_the_config_says_what_the_teachers_tokenizer_says():
    roberta, mpnet = tiny_roberta(), tiny_mpnet()
    config = plan_student(roberta.config, family="bert")[1]
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.type_vocab_size) == (1, 0, 2, 1)
    assert (config.max_position_embeddings, config.layer_norm_eps) == (24, 1e-5)  # RoBERTa counts from 2
    config = plan_student(mpnet.config, family="distilbert")[1]
    assert (config.pad_token_id, config.max_position_embeddings, config.vocab_size) == (1, 24, 101)
    config = plan_student(tiny_bert(type_vocab_size=3).config, family="bert")[1]
    assert config.type_vocab_size == 3


def test_new_positions_are_no_more_than_berts():
    """Those beyond what a run reads would stay random; rotary ones cannot."""
    modernbert = tiny_modernbert(max_position_embeddings=4096).config
    for family in ("bert", "distilbert"):
        assert plan_student(modernbert, family=family)[1].max_position_embeddings == 512
    assert (
        plan_student(tiny_roberta(max_position_embeddings=4098).config, family="bert")[1].max_position_embeddings
        == 4096
    )
    config = plan_student(tiny_roberta(max_position_embeddings=4098).config, family="modernbert")[1]
    assert config.max_position_embeddings == 4096


def test_a_student_that_reads_less_than_its_teacher_is_refused():
    recipe = Recipe(data=Data(sequence_length=1024), student=Student(family="bert"))
    with pytest.raises(
        UserError, match="sequence_length = 1024: the student has 512 positions; give --data.sequence_length 512"
    ):
        Estimator(recipe, [find_known_model("ModernBERT-base")], DEVICES["h100"])


def test_positions_that_a_student_takes_over_can_be_frozen_and_others_cannot():
    name = "embeddings.position_embeddings.weight"
    student = build_student(tiny_roberta(), family="bert", head=False, freeze_positions=True)
    assert [key for key, p in student.named_parameters() if not p.requires_grad] == [name]
    with pytest.raises(UserError, match="a modernbert that has none to take over: .*; leave it out"):
        plan_student(tiny_modernbert().config, family="bert", freeze_positions=True)
    assert plan_student(tiny_modernbert().config, family="distilbert", freeze_positions=True)[1].sinusoidal_pos_embds
    assert not plan_student(tiny_bert().config, family="distilbert", freeze_positions=True)[1].sinusoidal_pos_embds
    with pytest.raises(UserError, match="no position embeddings"):
        plan_student(tiny_bert().config, family="modernbert", freeze_positions=True)


def test_rotary_positions_need_heads_of_an_even_size():
    odd = BertConfig(vocab_size=300, hidden_size=33, num_attention_heads=3, intermediate_size=64, num_hidden_layers=2)
    with pytest.raises(UserError, match="student.family = modernbert: the teacher's heads have 11 dimensions, but"):
        plan_student(odd, family="modernbert")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "bert") for name in FAMILIES),
        ("mpnet", "modernbert"),
        ("bert", "modernbert"),
        ("roberta", "distilbert"),
    ],
)
def test_stock_classes_give_an_exports_hidden_states_as_in_training(name, family, tmp_path):
    """Positions, token types and padding are then as the student has learned them, with the teacher's tokenizer."""
    folder = find_model_folder(str(save_encoder(name, tmp_path / "teacher")))
    teacher = load_encoder(folder)
    student = randomised(build_student(teacher, family=family, head=False))
    tokenizer = load_tokenizer(folder.path)
    texts = ["a text", "and a second text, which is a longer one"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    real = batch["attention_mask"].bool()
    sites = Teacher(teacher).targets(batch["input_ids"], real, head=False).states
    with torch.no_grad():
        hidden, states = run_encoder(student, batch["input_ids"], real, sites=(LAST_HIDDEN,))
    assert states[LAST_HIDDEN].shape == sites[LAST_HIDDEN].shape
    weights = {key: value.detach().clone() for key, value in student.state_dict().items()}
    output = export(weights, student, tokenizer, tmp_path / "export", "card")
    stock = AutoModel.from_pretrained(output, **no_pooler(family)).eval()
    given = AutoTokenizer.from_pretrained(output)(texts, padding=True, return_tensors="pt")
    assert torch.equal(given["input_ids"], batch["input_ids"])
    with torch.no_grad():
        served = stock(**given).last_hidden_state
    assert (served - hidden)[real].abs().max() <= 1e-5 * hidden.abs().max()
    assert stock.config.pad_token_id == tokenizer.pad_token_id


def test_a_student_of_another_class_learns_by_logits_too(tmp_path):
    """It has a masked-LM head over the same vocabulary, tied to its word embeddings."""
    student = build_student(tiny_modernbert(), family="bert")
    student.save_pretrained(tmp_path)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path)(read_tokens()).logits.shape == (3, 12, 101)
    assert get_student_class(get_family(tiny_bert())).family.name == "distilbert"
