"""Test the terms between a student and its fine-tuned teacher on their own inner states."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from ds_distill.config.losses import Match
from ds_distill.finetune.inner_terms import InnerTerms, drop_projections, put_projections, run_recorded
from ds_distill.losses.relations import relation_kl
from ds_distill.models.families import get_family
from ds_distill.models.intermediates import LAST, Site, run_encoder
from ds_distill.utils.errors import UserError

SIZES = {"vocab_size": 60, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 32}
CPU = torch.device("cpu")


def classifier(seed: int, layers: int, width: int = 32):
    torch.manual_seed(seed)
    config = BertConfig(num_hidden_layers=layers, hidden_size=width, initializer_range=0.5, **SIZES)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = mask[2, 8:] = 0
    return {"input_ids": torch.randint(5, 60, (3, 9)), "attention_mask": mask}


def test_what_is_recorded_is_what_the_encoder_alone_gives(batch):
    model = classifier(1, 3)
    sites = [Site("hidden", 0), Site("hidden", LAST), Site("embeddings", 0), Site("query", 1), Site("value", 2)]
    outputs, states = run_recorded(model, batch, sites)
    _, expected = run_encoder(model, batch["input_ids"], batch["attention_mask"].bool(), sites=sites)
    assert torch.equal(outputs.logits, model(**batch).logits) and states.keys() == expected.keys()
    real = batch["attention_mask"].bool()
    for site in sites:
        torch.testing.assert_close(states[site][real], expected[site][real], rtol=1e-4, atol=1e-4)


def test_terms_are_weighted_means_over_real_tokens(batch):
    student, teacher = classifier(2, 2), classifier(3, 4)
    match = [
        Match("mse", layers="uniform", weight=2.0),
        Match("relation", layers=[(1, 3)], of="value", heads=4, weight=3.0),
        Match("cosine", of="embeddings"),
    ]
    terms = InnerTerms(match, student.config, teacher.config, None, CPU)
    _, own = run_recorded(student, batch, terms.student_sites)
    with torch.no_grad():
        _, theirs = run_recorded(teacher, batch, terms.teacher_sites)
    real = batch["attention_mask"].bool()
    found = terms(own, theirs, batch["attention_mask"])
    pairs = [(Site("hidden", 0), Site("hidden", 1)), (Site("hidden", LAST), Site("hidden", LAST))]
    squared = sum((own[a] - theirs[b])[real].square().mean(-1).sum() for a, b in pairs) / real.sum()
    torch.testing.assert_close(found["mse"], 2 * squared)
    vectors = [
        x[site].unflatten(-1, (4, -1)).transpose(1, 2)
        for x, site in ((own, Site("value", 1)), (theirs, Site("value", 3)))
    ]
    relation = relation_kl(vectors[0], vectors[0], vectors[1], vectors[1], token_mask=real) / (4 * real.sum())
    torch.testing.assert_close(found["relation"], 3 * relation)
    sum(found.values()).backward()
    assert all(layer.attention.self.value.weight.grad is not None for layer in get_family(student).get_layers(student))


def test_a_narrower_student_learns_a_projection_that_its_folder_lacks(batch):
    student, teacher = classifier(2, 2, 16), classifier(3, 4)
    terms = InnerTerms([Match("mse", layers="last")], student.config, teacher.config, None, CPU)
    names = {name for name, _ in student.named_parameters()}
    put_projections(student, terms)
    assert {name for name, _ in student.named_parameters()} - names == {"task_projections.mse.weight"}
    _, own = run_recorded(student, batch, terms.student_sites)
    with torch.no_grad():
        _, theirs = run_recorded(teacher, batch, terms.teacher_sites)
    real, last = batch["attention_mask"].bool(), Site("hidden", LAST)
    [found] = terms(own, theirs, batch["attention_mask"]).values()
    wide = own[last] @ torch.eye(32)[:16]
    torch.testing.assert_close(found, (wide - theirs[last])[real].square().mean(-1).sum() / real.sum())
    found.backward()
    assert student.task_projections["mse"].weight.grad.any()
    drop_projections(student)
    assert {name for name, _ in student.named_parameters()} == names


def test_what_a_fine_tuning_cannot_compare_is_refused():
    student, teacher = classifier(2, 2, 16).config, classifier(3, 4).config
    for entry, message in (
        (
            Match("relation", layers="mapped"),
            r"finetune\.match\[0\]\.layers = mapped: .*; give that folder, or layers: un",
        ),
        (Match("mze"), r"finetune\.match\[0\]\.loss = mze: no such loss; did you mean mse"),
    ):
        with pytest.raises(UserError, match=message):
            InnerTerms([entry], student, teacher, None, CPU)
    with pytest.raises(UserError, match=r"finetune\.match\[0\]\.normalize = true"):
        InnerTerms([Match("mse", layers="uniform", normalize=True)], teacher, teacher, None, CPU)
