"""Test the objective on batches in which some sequences are not masked."""

import pytest
import torch

from benchmarks.reference.closed_form import relative, vocabulary_loss
from benchmarks.reference.recipe import reference_losses
from ds_distill.data.batch import TokenCounts
from ds_distill.losses.objective import Objective
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Data, Losses, Match, Recipe
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import padding_mask, tiny_bert, tokens

WEIGHTS = {"kl": 5.0, "mlm": 2.0, "cosine": 1.0}


def batch(clean: list[int]):
    """Return tokens, their mask, labels, masked rows and counts of a padded batch."""
    ids, mask = tokens(), padding_mask()
    labels = torch.where((torch.arange(ids.shape[1]) % 4 == 1) & mask, ids, -100)
    labels[clean] = -100
    rows = torch.tensor([row for row in range(len(ids)) if row not in clean], dtype=torch.int64)
    counts = TokenCounts(int(mask.sum()), int((labels >= 0).sum()), int(mask[clean].sum()))
    return ids, mask, labels, rows, counts


def make(losses: Losses, world: int = 1):
    teacher = Teacher(tiny_bert(4).double())
    student = build_student(teacher.model.float(), dropout=0.0).double()
    teacher.model.double()
    return Objective(student, losses, world, teacher.config, [0, 3]), teacher


def take(objective, teacher, part, ids, mask, labels, rows, counts):
    """Return the summed terms of a part of a batch, and add its gradients to those that are there."""
    inside = torch.tensor([row - part.start for row in rows.tolist() if part.start <= row < part.stop], dtype=int)
    targets = teacher.targets(ids[part], mask[part], sites=objective.teacher_sites, masked_rows=inside)
    loss, sums = objective(ids[part], mask[part], labels[part], counts, targets, masked_rows=inside)
    loss.backward()
    return sums


@pytest.mark.parametrize("kl_tokens", ["all", "masked"])
@pytest.mark.parametrize("clean", [[0], [1, 2], []])
def test_losses_and_gradients_are_those_of_the_definition(kl_tokens, clean):
    """In float64, against full logits of the masked sequences alone, and the decoder's bias against a closed form."""
    objective, teacher = make(Losses(kl_tokens=kl_tokens))
    ids, mask, labels, rows, counts = batch(clean)
    sums = take(objective, teacher, slice(0, len(ids)), ids, mask, labels, rows, counts)
    got = {name: p.grad.clone() for name, p in objective.model.named_parameters()}
    objective.zero_grad()
    student = objective.model
    kl, mlm, _ = reference_losses(
        student, teacher.model, ids[rows], labels[rows], mask[rows], kl_tokens=kl_tokens, temperature=2.0
    )
    _, _, cosine = reference_losses(student, teacher.model, ids, labels, mask)
    expected = {"kl": kl, "mlm": mlm, "cosine": cosine}
    sum(WEIGHTS[name] * value for name, value in expected.items()).backward()
    assert objective.means(sums.tolist(), counts) == pytest.approx({n: x.item() for n, x in expected.items()}, 1e-5)
    for name, parameter in student.named_parameters():
        if not name.endswith("k_lin.bias"):  # whose gradient is 0 but for rounding
            assert relative(got[name], parameter.grad) < 1e-5, name
    with torch.no_grad():
        hidden = student.distilbert(ids[rows], attention_mask=mask[rows]).last_hidden_state
        head = objective.family.mlm_transform(student, hidden).flatten(0, 1)
        targets = teacher.targets(ids, mask, masked_rows=rows)
        ours, theirs = student.vocab_projector, targets.decoder_input.flatten(0, 1)
        each = counts.masked if kl_tokens == "masked" else counts.of_masked_sequences
        *_, d_bias = vocabulary_loss(
            head,
            ours.weight,
            ours.bias,
            theirs,
            targets.decoder_weight,
            targets.decoder_bias,
            labels[rows].flatten(),
            2.0,
            5.0 / each,
            2.0 / counts.masked,
            kl_tokens,
            mask[rows].flatten(),
        )
    assert relative(got["vocab_projector.bias"], d_bias) < 1e-9


@pytest.mark.parametrize("cut", [1, 2])
def test_the_division_of_the_batch_changes_nothing(cut):
    """Also where a part has clean sequences only."""
    whole, teacher = make(Losses(match=[Match("mse")]))
    given = batch([0])
    sums = take(whole, teacher, slice(0, len(given[0])), *given)
    parts, teacher = make(Losses(match=[Match("mse")]), world=2)
    added = sum(take(parts, teacher, part, *given) for part in (slice(0, cut), slice(cut, len(given[0]))))
    assert torch.allclose(added, sums, rtol=1e-10)
    gradients = [torch.cat([p.grad.flatten() for p in objective.parameters()]) for objective in (parts, whole)]
    assert relative(gradients[0] / 2, gradients[1]) < 1e-10  # the engine averages over the two ranks


def test_the_heads_see_masked_sequences_only():
    objective, teacher = make(Losses())
    ids, mask, labels, rows, counts = batch([0, 2])
    seen = []
    for module in (objective.model.vocab_transform, teacher.model.cls.predictions.transform.dense):
        module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2].numel()))
    take(objective, teacher, slice(0, len(ids)), ids, mask, labels, rows, counts)
    assert seen == [len(rows) * ids.shape[1]] * 2


def test_without_masks_no_logits_are_computed():
    recipe = Recipe(data=Data(clean_fraction=1.0))
    objective, teacher = make(recipe.trained_losses())
    ids, mask, labels, rows, counts = batch(list(range(len(tokens()))))

    def refuse(*_):
        raise AssertionError("a head ran")

    for module in (objective.model.vocab_transform, objective.model.vocab_projector, teacher.model.cls):
        module.register_forward_pre_hook(refuse)
    targets = teacher.targets(ids, mask, sites=objective.teacher_sites, head=False)
    loss, sums = objective(ids, mask, labels, counts, targets, masked_rows=rows)
    loss.backward()
    assert objective.weights == {"cosine": 1.0} and sums.shape == (1,)
    head = [name for name, parameter in objective.named_parameters() if not parameter.requires_grad]
    assert head and all(name.startswith("model.vocab_") for name in head)
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_a_step_without_masked_tokens_has_no_mean_of_them():
    objective, _ = make(Losses())
    counts = TokenCounts(real=10, masked=0, clean=10)
    assert objective.means([0.0, 0.0, 5.0], counts) == {"kl": None, "mlm": None, "cosine": 0.5}


def test_nothing_to_train_is_refused():
    with pytest.raises(UserError, match=r"data\.clean_fraction = 1: .*losses\.kl and losses\.mlm have no tokens"):
        Recipe(data=Data(clean_fraction=1.0), losses=Losses(cosine=0.0)).check()
    with pytest.raises(UserError, match=r"data\.clean_fraction = 1\.5: must be between 0 and 1"):
        Recipe(data=Data(clean_fraction=1.5)).check()
    Recipe(data=Data(clean_fraction=1.0)).check()
