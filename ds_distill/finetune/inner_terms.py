"""The terms of a fine-tuning that compare what lies inside a student with what lies inside its fine-tuned teacher.

Source: Jiao et al. 2020 (TinyBERT), section 3.2: task-specific distillation of the layers, then of the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ds_distill.config.losses import Losses, Match
from ds_distill.losses.match_checks import HEAD_LOSSES
from ds_distill.losses.matching import LOSSES
from ds_distill.losses.terms import MatchedLoss, make_matches, teacher_sites
from ds_distill.models.intermediates import HIDDEN, LAST, Site
from ds_distill.models.recorder import Recorder
from ds_distill.utils.errors import UserError

KEY = "finetune.match"
PROJECTIONS = "task_projections"  # in a model that is in training


class InnerTerms:
    """The weighted terms of `finetune.match`, each a mean over the real tokens of a batch.

    Attributes:
        student_sites: What the student must record.
        teacher_sites: What the teacher must record.
        projections: What makes the student's hidden states as wide as the teacher's, by term. They are trained, and are
            no part of the model.
    """

    def __init__(
        self,
        match: Sequence[Match],
        student: Any,
        teacher: Any,
        layer_map: Sequence[int] | None,
        device: torch.device | None = None,
    ):
        """Make the terms.

        Args:
            match: The setting's entries.
            student: The student's config.
            teacher: The teacher's config.
            layer_map: The teacher layer that each student layer started from; None where that is not known.
            device: Where they run; the CPU by default.

        Raises:
            UserError: An entry cannot be, see `losses.terms.make_matches`, or needs deviations.
        """
        for index, entry in enumerate(match):
            is_term = entry.loss in (*LOSSES, *HEAD_LOSSES) and entry.quantities != ["embeddings"]
            if is_term and layer_map is None and entry.layers in ("mapped", "mapped_last", "span_ends"):
                raise UserError(
                    f"{KEY}[{index}].layers = {entry.layers}: the teacher layers that the model's layers were "
                    "initialized from are not known: either there are none, or the model is not in the folder of its "
                    "distillation; give that folder, or layers: uniform, last or pairs such as [[0, 1], [1, 3]]"
                )
        losses = replace(Losses(), kl=0.0, mlm=0.0, cosine=0.0, match=list(match))
        try:
            self.terms = make_matches(losses, student, teacher, layer_map)
        except UserError as error:
            raise UserError(str(error).replace("losses.match", KEY)) from error
        for index, (term, entry) in enumerate(zip(self.terms.values(), match, strict=True)):
            term.to(device or torch.device("cpu"))
            if entry.normalize:
                raise UserError(f"{KEY}[{index}].normalize = true: is not measured in a fine-tuning; leave it out")
        self.projections = nn.ModuleDict(
            {
                name: term.projection
                for name, term in self.terms.items()
                if isinstance(term, MatchedLoss) and term.projection is not None
            }
        )
        self.student_sites = tuple(dict.fromkeys(own for term in self.terms.values() for own, _ in term.sites))
        self.teacher_sites, _ = teacher_sites(self.terms.values())

    def __call__(
        self, student: Mapping[Site, Tensor], teacher: Mapping[Site, Tensor], attention_mask: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted mean of each term over the real tokens of the batch, by name.

        Args:
            student: What the student recorded.
            teacher: What the teacher recorded.
            attention_mask: [B, L], 1 for real tokens.
        """
        real = attention_mask.bool()
        count = real.sum()
        return {name: term.weight * term(student, teacher, real) / count for name, term in self.terms.items()}


def put_projections(model: PreTrainedModel, inner: InnerTerms) -> None:
    """Make the projections of some terms parts of a model, in place, so that they train and are kept with it."""
    if len(inner.projections):
        model.add_module(PROJECTIONS, inner.projections)


def drop_projections(model: PreTrainedModel) -> None:
    """Leave a model, in place, without what `put_projections` has added."""
    if hasattr(model, PROJECTIONS):
        delattr(model, PROJECTIONS)


def run_recorded(
    model: PreTrainedModel, inputs: Mapping[str, Any], sites: Sequence[Site]
) -> tuple[Any, dict[Site, Tensor]]:
    """Run a model with the head of a task; return (its outputs, what the sites ask for).

    Args:
        model: The model.
        inputs: The arguments of its forward.
        sites: The quantities to record.
    """
    hidden = [site for site in sites if site.quantity in HIDDEN]
    with Recorder(model, [site for site in sites if site not in hidden]) as recorder:
        outputs = model(**inputs, output_hidden_states=bool(hidden))
    # the first of transformers' hidden states is what enters the first layer
    states = {
        site: outputs.hidden_states[site.layer if site.layer == LAST else site.layer + (site.quantity == "hidden")]
        for site in hidden
    }
    return outputs, states | recorder.states
