"""The host launches a micro-step of padded sequences without waiting for what it computes."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ds_distill.losses.objective import Objective
from ds_distill.models.intermediates import LAST_HIDDEN, Site, run_encoder
from ds_distill.models.student import build_student
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Losses, Match
from tests.unit.models.test_teacher import FAMILIES, padding_mask, tokens

WAITS = {  # operators whose result the host needs: a number, or a shape that depends on values
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::item",
    "aten::nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
}


class Waits(TorchDispatchMode):
    """Counts the operators for which a host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function._schema.name in WAITS:
            self.found.append(function._schema.name)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("mask", [padding_mask(), None])
def test_padding_makes_no_host_wait(make, mask):
    """The vocabulary loss is left out here: on a CPU it picks rows, which its GPU body does not."""
    teacher = Teacher(make())
    student = build_student(teacher.model, init_layers=[0, 2], dropout=0.1)
    losses = Losses(cosine=1.0, match=[Match(loss="mse", layers=[(0, 1)], weight=1.0)])
    objective = Objective(student, losses, 1, teacher.config)
    ids = tokens()
    with Waits() as waits:
        targets = teacher.targets(ids, mask, None, (*objective.teacher_sites, Site("key", 2)))
        _, states = run_encoder(student, ids, mask, None, (*objective.student_sites, Site("value", 0)))
        sum(match(states, targets.states, mask) for match in objective.matches.values()).backward()
    assert waits.found == []
    with Waits() as waits:
        bool(padding_mask().all())
    assert waits.found, "the count can fail"


@pytest.mark.parametrize("make", FAMILIES)
def test_a_padded_sequence_computes_what_its_tokens_alone_do(make):
    teacher = Teacher(make())
    ids, mask = tokens(), padding_mask()
    length = int(mask[-1].sum())
    sites = (LAST_HIDDEN, Site("hidden", 0))
    padded, alone = teacher.targets(ids, mask, None, sites), teacher.targets(ids[-1:, :length], None, None, sites)
    assert length < ids.shape[1]
    for site in sites:
        torch.testing.assert_close(padded.states[site][-1:, :length], alone.states[site], rtol=1e-4, atol=1e-5)
