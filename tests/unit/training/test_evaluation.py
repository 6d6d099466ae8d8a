"""Held-out figures equal a direct computation, kind of positions by kind, with errors clustered by sequence."""

import math

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from ds_distill.data.batch import Batch
from ds_distill.losses.objective import Objective
from ds_distill.recipe import Losses
from ds_distill.training.evaluation import FIGURES, evaluate, figures_of, sum_moments
from ds_distill.utils.files import json_text

CPU = torch.device("cpu")
MASK, VOCABULARY, LENGTH = 4, 11, 16  # a small vocabulary, so that some predictions are right


class Counted(torch.nn.Module):
    """A model for which each selected position costs half a nat, and every second one of a batch is right."""

    def __init__(self, loss: float = 0.5):
        super().__init__()
        self.loss = loss

    def forward(self, input_ids, attention_mask, labels, mode):
        selected = int((labels != -100).sum())
        right = torch.arange(selected, dtype=torch.float64) % 2
        results = torch.stack([torch.full_like(right, self.loss), right], dim=1)
        return results[:, 0].sum(), results


def heldout(input_ids, labels, token_mask=None) -> Batch:
    return Batch(input_ids, labels, token_mask, shows_mask=input_ids == MASK)


def batch(*labels: int, shown: int = 0) -> Batch:
    return heldout(torch.full((1, len(labels)), shown), torch.tensor([labels]))


def test_figures_are_means_over_positions():
    figures = evaluate(Counted(), [batch(5, -100, 6, 7), batch(-100, 8)], CPU)
    assert figures["mlm_loss"] == 0.5 and figures["mlm_accuracy"] == 0.25 and figures["mlm_count"] == 4
    assert tuple(figures) == FIGURES


def test_nothing_selected_is_not_measured():
    for batches in ([], [batch(-100, -100)]):
        figures = evaluate(Counted(), batches, CPU)
        assert figures == {key: 0 if key.endswith("_count") else None for key in FIGURES}
    diverged = evaluate(Counted(float("nan")), [batch(5)], CPU)
    assert diverged["mlm_loss"] is diverged["mlm_accuracy"] is diverged["random_loss"] is None
    assert '"mlm_loss": null, "mlm_loss_se": null, "mlm_accuracy": null' in json_text(diverged)


def test_one_sequence_has_no_standard_error():
    figures = evaluate(Counted(), [batch(5, 6, shown=MASK)], CPU)
    assert figures["mask_accuracy"] == 0.5 and figures["mask_accuracy_se"] is None
    assert evaluate(Counted(), [batch(5, 6, shown=MASK)] * 2, CPU)["mask_accuracy_se"] == 0


@pytest.mark.parametrize(
    "label, shown, kind",
    [(7, MASK, "mask"), (7, 7, "kept"), (7, 9, "random"), (MASK, MASK, "mask")],  # the last: nothing is visible
)
def test_a_position_counts_as_what_the_model_sees_there(label, shown, kind):
    figures = evaluate(Counted(), [batch(label, shown=shown), batch(-100, shown=MASK)], CPU)
    counts = {name: figures[f"{name}_count"] for name in ("mask", "kept", "random", "mlm")}
    assert counts == dict.fromkeys(counts, 0) | {kind: 1, "mlm": 1}


def make_batches(size: int) -> list[Batch]:
    """11 padded sequences with unequal numbers of each kind of positions, `size` to a batch."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (11, LENGTH), generator=g)
    real = torch.arange(LENGTH) < torch.randint(4, LENGTH + 1, (11, 1), generator=g)
    selected = (torch.rand(11, LENGTH, generator=g) < torch.rand(11, 1, generator=g)) & real
    fate = torch.rand(11, LENGTH, generator=g)
    drawn = torch.randint(5, VOCABULARY, (11, LENGTH), generator=g)
    shown = torch.where(selected, torch.where(fate < 0.6, MASK, torch.where(fate < 0.8, drawn, ids)), ids)
    columns = (shown, torch.where(selected, ids, -100), real)
    return [heldout(*part) for part in zip(*(column.split(size) for column in columns), strict=True)]


def make_model() -> BertForMaskedLM:
    """A model with large random weights, whose predictions differ from position to position."""
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=LENGTH,
        )
    )
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model.double().eval()


@pytest.mark.parametrize("size", [1, 4, 11])
def test_figures_equal_a_direct_computation_in_float64(size):
    model, batches = make_model(), make_batches(size)
    rows = []  # (kind, sequence, loss, right) of every selected position, by plain transformers
    with torch.no_grad():
        for number, part in enumerate(batches):
            logits = model(input_ids=part.input_ids, attention_mask=part.token_mask).logits.log_softmax(-1)
            for b, i in (part.labels != -100).nonzero().tolist():
                label, shown = int(part.labels[b, i]), int(part.input_ids[b, i])
                kind = "mask" if shown == MASK else "kept" if shown == label else "random"
                right = int(logits[b, i].argmax()) == label
                rows.append((kind, (number, b), -float(logits[b, i, label]), float(right)))
    figures = evaluate(Objective(model, Losses().without_teacher(), 1), batches, CPU)
    kinds = ("mask", "mlm", "kept", "random")
    assert len({figures[f"{kind}_accuracy"] for kind in kinds}) == 4, "else one could be mistaken for another"
    for kind in kinds:
        mine = [row for row in rows if kind in ("mlm", row[0])]
        sequences = {row[1] for row in mine}
        assert figures[f"{kind}_count"] == len(mine) and len(sequences) > 2
        for name, column in (("loss", 2), ("accuracy", 3)):
            mean = sum(row[column] for row in mine) / len(mine)
            residuals = [sum(row[column] - mean for row in mine if row[1] == sequence) for sequence in sequences]
            squares = sum(residual**2 for residual in residuals) * len(sequences) / (len(sequences) - 1)
            assert figures[f"{kind}_{name}"] == pytest.approx(mean, rel=1e-12, abs=1e-12)
            assert figures[f"{kind}_{name}_se"] == pytest.approx(math.sqrt(squares) / len(mine), rel=1e-9, abs=1e-12)


def test_the_standard_error_is_the_spread_of_the_mean_over_samples_of_sequences():
    """Positions of a sequence are right or wrong together here, for which a binomial error is far too small."""

    class Alike(torch.nn.Module):
        def forward(self, input_ids, attention_mask, labels, mode):
            right = labels[labels != -100].double() - 5  # a sequence of 6s is right, one of 5s is wrong
            return right.sum(), torch.stack([1 - right, right], dim=1)

    g = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(200):
        sequences = torch.randint(5, 7, (50, 1), generator=g).expand(50, 8)
        figures = evaluate(Alike(), [heldout(torch.full((50, 8), MASK), sequences)], CPU)
        means.append(figures["mask_accuracy"])
        errors.append(figures["mask_accuracy_se"])
    spread = float(torch.tensor(means).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)  # the binomial one is 0.35 of it


def test_the_error_of_a_lead_is_the_spread_of_its_mean_over_samples_of_sequences():
    """Two models that are right at the same positions but for one in five, which the errors of each do not know."""
    g = torch.Generator().manual_seed(0)
    leads, errors, apart = [], [], []
    for _ in range(200):
        sequences = heldout(torch.full((50, 8), MASK), torch.full((50, 8), 5))
        one = torch.randint(0, 2, (400, 1), generator=g).double().expand(400, 2)
        two = torch.where(torch.rand(400, 1, generator=g) < 0.2, 1 - one, one)
        lead = figures_of(sum_moments(sequences, one - two))
        each = [figures_of(sum_moments(sequences, results)) for results in (one, two)]
        assert lead["mask_accuracy"] == pytest.approx(each[0]["mask_accuracy"] - each[1]["mask_accuracy"], abs=1e-12)
        leads.append(lead["mask_accuracy"])
        errors.append(lead["mask_accuracy_se"])
        apart.append(math.hypot(*(figures["mask_accuracy_se"] for figures in each)))
    spread = float(torch.tensor(leads).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)
    assert sum(apart) / len(apart) > 1.3 * spread
