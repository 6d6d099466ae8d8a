"""The stages of a run: each has an objective and an engine of its own, and hands its weights to the next.

What a stage does not train has no optimizer, and so stays as it is to the last bit, whatever the ZeRO stage, the number
format or the weight decay.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.compression.fake_quantize import check_quantizable, fake_quantize
from ds_distill.config.losses import Match
from ds_distill.distributed.process_group import broadcast_object, run_on_rank0
from ds_distill.losses.objective import Objective
from ds_distill.losses.teacher_forcing import force_teacher
from ds_distill.models.learnable import freeze_all_but
from ds_distill.models.low_rank import get_rank
from ds_distill.recipe import Losses
from ds_distill.stages import Span, span_at
from ds_distill.training.engine import Engine
from ds_distill.training.weights import gather_master_weights, gather_masters, load_checkpoint_weights
from ds_distill.utils.errors import UserError


class Stages:
    """The objectives of a run's stages.

    Attributes:
        spans: The stages, in order.
    """

    def __init__(
        self,
        spans: list[Span],
        student: PreTrainedModel,
        teacher: PretrainedConfig,
        make: Callable[[PreTrainedModel, Losses], Objective],
    ):
        """Keep what a student of each stage is made of.

        Args:
            spans: The stages, in order.
            student: The student at its start, fp32 on the CPU.
            teacher: The teacher's config.
            make: Returns the objective of a student and some losses.
        """
        self.spans, self._teacher, self._make = spans, teacher, make
        self._start = student
        self._trainable = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
        # a copy without values, which keeps ties and buffers
        hollow = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in student.parameters()
        }
        self._hollow = copy.deepcopy(student, hollow)

    def at(self, step: int) -> Span:
        """Return the stage that the step after `step` finished ones belongs to; of a finished run, the last."""
        return span_at(self.spans, step)

    def begin(self, step: int, checkpoint: Path | None) -> Objective:
        """Collective: return the objective with which a run begins, or resumes after `step` steps from a checkpoint.

        Of the checkpoint's weights, those that the stage does not train are read here, since an engine restores only
        what it trains.
        """
        span, student = self.at(step), self._start
        if checkpoint is not None:
            weights: dict[str, Tensor] = {}
            run_on_rank0(lambda: weights.update(load_checkpoint_weights(checkpoint, student)))
            student = self._student(broadcast_object(weights))
        del self._start
        return self._objective(span, student)

    def next(self, span: Span, engine: Engine) -> Objective:
        """Collective: end an engine, and return the objective of the stage after it, with the weights that it trained.

        Projections of terms go over where the next stage has the same term; only its weight may differ.
        """
        before = cast(Objective, engine.module)
        weights = gather_master_weights(engine)
        projections = gather_masters(engine, before.matches, "matches.")
        engine.destroy()
        objective = self._objective(span, self._student(weights))
        names = _find_kept_terms(before.losses.matched_terms(), objective.losses.matched_terms())
        with torch.no_grad():
            for name, parameter in objective.matches.named_parameters():
                term, _, rest = name.partition(".")
                if term in names:
                    parameter.copy_(projections[f"{names[term]}.{rest}"])
        return objective

    def objectives(self) -> list[Objective]:
        """Return the objectives of all stages, without values of weights, to find out what they need.

        Raises:
            UserError: A stage does not fit the student and the teacher.
        """
        with torch.device("meta"):
            return [self._objective(span, copy.deepcopy(self._hollow)) for span in self.spans]

    def _student(self, weights: Mapping[str, Tensor]) -> PreTrainedModel:
        values = {id(p): nn.Parameter(weights[name].clone()) for name, p in self._hollow.named_parameters()}
        return copy.deepcopy(self._hollow, values)

    def _objective(self, span: Span, student: PreTrainedModel) -> Objective:
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        try:
            objective, stage = self._make(student, span.losses), span.stage
        except UserError as error:  # it names a key of the losses
            raise UserError(f"{span.key}.{error}") from error
        if isinstance(stage.learnable, list):
            freeze_all_but(student, stage.learnable, objective.highest, span.key, head=objective.vocabulary)
        if stage.teacher_forced:
            layers = [part for part in stage.learnable if isinstance(part, int)]
            force_teacher(objective, layers, student.config, self._teacher, span.key)
        if stage.quantize:
            check_quantizable(get_rank(student.config), f"{span.key}.quantize")
            fake_quantize(student, stage.quantize)
        return objective


def _find_kept_terms(before: Mapping[str, Match], now: Mapping[str, Match]) -> dict[str, str]:
    """Return the names of the terms that both stages have, {name now: name before}.

    A term is the same whatever its weight. Its name may change, since it counts the terms of its loss.
    """
    left, names = dict(before), dict[str, str]()
    for name, term in now.items():
        same = [old for old, other in left.items() if replace(other, weight=1.0) == replace(term, weight=1.0)]
        if same:
            names[name] = same[0]
            del left[same[0]]
    return names
