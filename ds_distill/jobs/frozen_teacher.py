"""The teachers of a run, in a number format that their activations fit in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ds_distill.data.batch import Batch
from ds_distill.distributed.process_group import all_gather_object
from ds_distill.models.ensemble import Ensemble, counterparts
from ds_distill.models.folder import ModelFolder
from ds_distill.models.intermediates import LAST_HIDDEN, Site
from ds_distill.models.precision import common_dtype, teacher_dtype
from ds_distill.models.teacher import Teacher, needed_part
from ds_distill.recipe import Recipe
from ds_distill.utils.errors import UserError

_LOGITS = 1 << 24  # that exist at a time: of a large vocabulary, those of 64 tokens


def freeze_teachers(
    models: list[PreTrainedModel],
    folders: Sequence[ModelFolder],
    recipe: Recipe,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    sites: Sequence[Site] = (LAST_HIDDEN,),
    averaged: Sequence[Site] = (),
) -> Teacher | Ensemble:
    """Collective: return the teachers on `device`, after a look at what each computes for one batch.

    Args:
        models: The loaded models, fp32 on the CPU, which this list then no longer has. What the recipe does not need
            of them is dropped; the rest is moved and cast in place.
        folders: The folders that they were loaded from.
        recipe: The recipe.
        batch: A micro-batch of this rank.
        device: The device of the run.
        dtype: The student's number format.
        sites: What is recorded of the first one.
        averaged: Those of them at which the others are recorded too.

    Raises:
        UserError: A hidden state or a logit is NaN or infinite on one of the ranks.
    """
    head, training = recipe.compares_logits, recipe.training
    wanted = common_dtype(
        [teacher_dtype(device, dtype, training.teacher_precision, folder.config.dtype) for folder in folders]
    )
    first = models[0].config
    teachers: list[Teacher] = []
    for folder in folders:
        model = models.pop(0)
        recorded = tuple(sites) if not teachers else counterparts(averaged, first, model.config)
        part = needed_part(model, recorded, head=head)
        del model
        teacher = Teacher(part.to(device=device, dtype=wanted))  # type: ignore[call-arg]  # wrong in transformers
        problems = all_gather_object(not_finite(teacher, batch.to(device), recorded))
        if problem := next((problem for problem in problems if problem), None):
            raise UserError(f"{folder.title}: {problem}, {_remedy(wanted)}")
        teachers.append(teacher)
    if len(teachers) == 1:
        return teachers[0]
    return Ensemble(teachers, recipe.losses.weights_of_teachers(len(teachers)), averaged)


def _remedy(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return (
            "because fp16 ends at 65,504 and a model that was trained in bf16 or fp32 may exceed it; set "
            "training.teacher_precision = bf16, or fp32 on a GPU without bf16"
        )
    return "whose range is fp32's; use another checkpoint, because this one is damaged or its training has diverged"


@torch.no_grad()
def not_finite(teacher: Teacher, batch: Batch, sites: Sequence[Site] = (LAST_HIDDEN,)) -> str | None:
    """Return which of a teacher's outputs has a NaN or an infinity at a real token of a batch, or None.

    Args:
        teacher: The teacher.
        batch: A batch on the teacher's device.
        sites: What is recorded of the teacher.
    """
    targets = teacher.targets(batch.input_ids, batch.attention_mask, None, sites)
    real = torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.token_mask is None else batch.token_mask
    for site, states in targets.states.items():
        if not bool(states[real].isfinite().all()):
            return f"its {site.quantity} states are not finite in {_format(states)} on a batch of the corpus"
    if targets.decoder_input is None or targets.decoder_weight is None:
        return None
    for part in targets.decoder_input[real].split(max(1, _LOGITS // len(targets.decoder_weight))):
        logits = torch.nn.functional.linear(part, targets.decoder_weight, targets.decoder_bias)
        # the largest is NaN or infinite if one is; isfinite would make a copy of all
        if not bool(logits.abs_().amax().isfinite()):
            return f"its logits are not finite in {_format(logits)} on a batch of the corpus"
    return None


def _format(values: Tensor) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[values.dtype]
