"""Test what only DeBERTa has: relative positions, heads of two kinds, a projection, a convolution, a mask of tokens."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, DebertaV2ForMaskedLM

from ds_distill.estimate.estimate import Estimator
from ds_distill.estimate.hardware import DEVICES
from ds_distill.estimate.known_models import find_known_model
from ds_distill.finetune.heads import load_for_task
from ds_distill.losses.objective import Objective
from ds_distill.models.attention_mask import check_keeps_apart, make_attention_mask
from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.intermediates import LAST_HIDDEN, Site, run_encoder
from ds_distill.models.loading import load_encoder, load_masked_lm, load_teacher
from ds_distill.models.student import build_student
from ds_distill.models.student_plan import plan_student
from ds_distill.models.teacher import Teacher
from ds_distill.preflight.models import check_teachers_fit
from ds_distill.recipe import Data, Losses, Match, Recipe
from ds_distill.tasks.catalog import get_task
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import padding_mask, randomised, tiny_bert, tiny_deberta, tokens

# As base and large of v2 were published, v2-xlarge, and what the class can be besides.
KINDS = {
    "v3": {},
    "v2-xlarge": {"conv_kernel_size": 3, "conv_act": "gelu", "attention_head_size": 8, "pooler_hidden_size": 32},
    "own projections of positions": {"share_att_key": False},
    "content to position alone": {"share_att_key": False, "pos_att_type": ["c2p"], "norm_rel_ebd": "none"},
    "no buckets": {"position_buckets": -1, "max_relative_positions": 24},
    "positions and types": {"position_biased_input": True, "type_vocab_size": 2},
    "smaller embeddings": {"embedding_size": 12},
    "absolute positions alone": {"relative_attention": False, "position_biased_input": True, "norm_rel_ebd": "none"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [None, padding_mask()])
def test_parts_and_copies_of_every_kind_are_the_model(kind, mask):
    model, ids = tiny_deberta(4, **KINDS[kind]), tokens()
    real = slice(None) if mask is None else mask
    with torch.no_grad():
        expected = model(ids, attention_mask=None if mask is None else mask.long(), output_hidden_states=True)
    sites = (LAST_HIDDEN, Site("hidden", 0), Site("embeddings", 0))
    found = Teacher(model).targets(ids, mask, sites=sites)
    logits = torch.nn.functional.linear(found.decoder_input, found.decoder_weight, found.decoder_bias)
    assert torch.equal(logits, expected.logits)
    for site, at in zip(sites, (-1, 1, 0), strict=True):
        assert torch.equal(found.states[site], expected.hidden_states[at])
    student = build_student(model, init_layers=[0, 1, 2, 3]).eval()
    with torch.no_grad():
        hidden, _ = run_encoder(student, ids, mask)
        actual = get_family(student).get_decoder(student)(get_family(student).mlm_transform(student, hidden))
    assert (actual - expected.logits)[real].abs().max() <= 1e-5 * expected.logits.abs().max()
    bare = build_student(model, init_layers=[0, 1, 2, 3], head=False).eval()
    with torch.no_grad():
        states, _ = run_encoder(bare, ids, mask)
    assert (states - expected.hidden_states[-1])[real].abs().max() <= 1e-5 * states.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_narrower_student_of_every_kind_has_the_teachers_first_columns(kind):
    teacher = tiny_deberta(4, **KINDS[kind])
    student = build_student(teacher, hidden_size=16, init_layers=[0, 2])
    config = student.config
    assert config.pooler_hidden_size == 16 and getattr(config, "embedding_size", 16) in (16, 12)
    source = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        whole = source[name.replace("layer.1.", "layer.2.")]
        assert torch.equal(parameter, whole[tuple(slice(size) for size in parameter.shape)]), name
    assert student(tokens()).logits.shape == (3, 12, 101)
    type(student)(plan_student(config, num_layers=1)[1])  # a student of the student


@pytest.mark.parametrize("task", ["sst2", "squad", "ner"])
def test_a_narrower_student_is_fine_tuned_with_the_heads_of_its_class(task, tmp_path):
    """Its pooler has its own width, and all dropouts of the head are set."""
    student = build_student(tiny_deberta(4), hidden_size=16, head=False)
    student.save_pretrained(tmp_path)
    model = load_for_task(str(tmp_path), get_task(task), "model", tuned=False, dropout=0.25).train()
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    encoder = dict(model.deberta.named_parameters())
    assert all(torch.equal(encoder[name], parameter) for name, parameter in student.named_parameters())
    sum(output.float().sum() for output in model(tokens()).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_sizes_that_a_narrower_student_cannot_have_are_refused():
    with pytest.raises(UserError, match=r"student\.hidden_size = 16: is the size of the teacher's embeddings"):
        plan_student(tiny_deberta(embedding_size=16).config, hidden_size=16)
    grouped = tiny_deberta(conv_kernel_size=3, conv_groups=2).config
    with pytest.raises(UserError, match=r"student\.hidden_size = 16: the teacher's convolution has 2 groups"):
        plan_student(grouped, hidden_size=16)
    plan_student(grouped, num_layers=1)


def test_positions_that_are_not_there_cannot_be_frozen():
    with pytest.raises(
        UserError, match=r"student\.freeze_positions = true: this deberta-v2 has no position embeddings"
    ):
        build_student(tiny_deberta(), freeze_positions=True)
    student = build_student(tiny_deberta(position_biased_input=True), freeze_positions=True)
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert frozen == ["deberta.embeddings.position_embeddings.weight"]


@pytest.mark.parametrize("shared", [True, False])
def test_recorded_vectors_are_those_of_the_tokens(shared):
    """With shared projections, the modules run on the relative positions too."""
    model, ids, mask = tiny_deberta(share_att_key=shared), tokens(), padding_mask()
    sites = [Site(quantity, 1) for quantity in ("query", "key", "value")]
    with torch.no_grad():
        _, states = run_encoder(model, ids, mask, None, [*sites, Site("hidden", 0)])
        attention = model.deberta.encoder.layer[1].attention.self
        for site in sites:
            wanted = getattr(attention, f"{site.quantity}_proj")(states[Site("hidden", 0)])
            assert torch.equal(states[site], wanted)


def without_head(model, folder, **changes):
    """Save a model with its head under the names of the other kind, and with these changes of config.json."""
    model.save_pretrained(folder)
    names = {
        "cls.predictions.transform.": "lm_predictions.lm_head.",
        "cls.predictions.bias": "lm_predictions.lm_head.bias",
    }
    weights = load_file(folder / "model.safetensors")
    for old, new in names.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if not name.startswith("cls.")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return weights


def test_a_head_without_a_decoder_is_read_as_the_other_kind(tmp_path):
    without_head(tiny_deberta(), tmp_path / "new", legacy=False)
    expected = DebertaV2ForMaskedLM.from_pretrained(tmp_path / "new")
    assert not expected.legacy and hasattr(expected, "lm_predictions")
    model = load_masked_lm(str(tmp_path / "new"))
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, expected(tokens()).logits)
        model.save_pretrained(tmp_path / "saved")
        assert torch.equal(
            AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")(tokens()).logits, expected(tokens()).logits
        )
        student = build_student(model, init_layers=[0, 1, 2]).eval()
        torch.testing.assert_close(student(tokens()).logits, expected(tokens()).logits)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_checkpoint_of_replaced_token_detection_has_no_masked_lm_head(legacy, tmp_path):
    """As the published v3 files: a head by name, beside the one that was trained."""
    weights = without_head(tiny_deberta(), tmp_path, legacy=legacy)
    weights["mask_predictions.classifier.weight"] = torch.ones(1, 32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folder = find_model_folder(str(tmp_path))
    with pytest.raises(UserError, match=r"no masked-LM head: .*published DeBERTa-v3 .* or set losses\.kl = 0 and loss"):
        load_teacher(folder, logits=True)
    encoder = load_teacher(folder, logits=False)
    assert not get_family(encoder).has_head(encoder)
    assert torch.equal(encoder.encoder.rel_embeddings.weight, weights["deberta.encoder.rel_embeddings.weight"])
    assert type(load_encoder(folder)) is type(encoder)


def test_documents_of_a_packed_sequence_cannot_be_kept_apart(tmp_path):
    config, mask = tiny_deberta().config, torch.ones(2, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(
        UserError, match=r"data\.attend_across_documents = false: teacher x is a deberta-v2, .*; set it to true, or"
    ):
        check_keeps_apart(config, "packed", False, "teacher x")
    check_keeps_apart(config, "packed", True, "teacher x")
    check_keeps_apart(config, "lines", False, "teacher x")
    check_keeps_apart(tiny_bert().config, "packed", False, "teacher x")
    folder = tmp_path / "teacher"
    tiny_deberta().save_pretrained(folder)
    recipe = Recipe(data=Data(sequence_length=16, attend_across_documents=False))
    with pytest.raises(UserError, match=rf"attend_across_documents = false: teacher {folder} is a deberta-v2"):
        check_teachers_fit([find_model_folder(str(folder))], recipe)
    with pytest.raises(UserError, match=r"attend_across_documents = false: teacher .*deberta-v3-base is a deberta-v2"):
        Estimator(recipe, [find_known_model("deberta-v3-base")], DEVICES["h100"])
    with pytest.raises(UserError, match="deberta-v3-base is a deberta-v2, which cannot keep"):
        start = find_known_model("deberta-v3-base")
        Estimator(recipe, [find_known_model("bert-base-uncased")], DEVICES["h100"], start)
    with pytest.raises(ValueError, match="deberta-v2 takes no mask of 4 dimensions"):
        make_attention_mask(tiny_deberta(), mask, tokens())


def test_relative_positions_learn_with_the_layers_alone():
    """Where no layer attends, ZeRO stage 3 would wait for gradients that do not come."""
    teacher, ids = tiny_deberta(), tokens()
    for match, learns in (
        (Match(loss="mse", of="embeddings", weight=1.0), False),
        (Match(loss="relation", of=["query", "value"], layers=[(0, 1)], weight=1.0), False),
        (Match(loss="relation", of=["query", "value"], layers=[(1, 1)], weight=1.0), True),
    ):
        student = build_student(teacher, dropout=0.0, num_layers=2)
        objective = Objective(student, Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[match]), 1, teacher.config)
        targets = Teacher(tiny_deberta()).targets(ids, sites=objective.teacher_sites)
        loss, _ = objective(ids, None, torch.full_like(ids, -100), (ids.numel(), 0), targets)
        loss.backward()
        shared = [*student.deberta.encoder.rel_embeddings.parameters(), *student.deberta.encoder.LayerNorm.parameters()]
        assert all(parameter.requires_grad == learns for parameter in shared)
        assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_products_of_queries_and_keys_are_not_its_attention():
    config = tiny_deberta().config
    for match in (Match(loss="attention", weight=1.0), Match(loss="relation", of="query_key", weight=1.0)):
        with pytest.raises(UserError, match=r"\.of = query_key: the student is a deberta-v2, whose attention scores"):
            Objective(randomised(build_student(tiny_deberta())), Losses(match=[match]), 1, config)
