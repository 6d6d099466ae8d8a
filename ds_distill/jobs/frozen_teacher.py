"""The teacher of a run, in a number format that its activations fit in."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ds_distill.data.batch import Batch
from ds_distill.distributed.process_group import all_gather_object
from ds_distill.models.folder import ModelFolder
from ds_distill.models.precision import teacher_dtype
from ds_distill.models.teacher import Teacher
from ds_distill.recipe import Training
from ds_distill.utils.errors import UserError

_ROWS = 512  # tokens whose logits exist at a time


def freeze_teacher(
    model: PreTrainedModel,
    folder: ModelFolder,
    training: Training,
    batch: Batch,
    device: torch.device,
    dtype: torch.dtype,
    *,
    head: bool = True,
) -> Teacher:
    """Collective: return the teacher on `device`, after a look at what it computes for one batch.

    Args:
        model: The loaded model, fp32 on the CPU. It is moved and cast in place.
        folder: The folder that it was loaded from.
        training: The recipe's training section.
        batch: A micro-batch of this rank.
        device: The device of the run.
        dtype: The student's number format.
        head: Whether the student is to match logits too.

    Raises:
        UserError: A hidden state or a logit is NaN or infinite on one of the ranks.
    """
    wanted = teacher_dtype(device, dtype, training.teacher_precision, folder.config.dtype)
    teacher = Teacher(model.to(device=device, dtype=wanted))  # type: ignore[call-arg]  # as in Teacher.load
    problems = all_gather_object(not_finite(teacher, batch.to(device), head))
    if problem := next((problem for problem in problems if problem), None):
        raise UserError(f"{folder.title}: {problem}, {_remedy(wanted)}")
    return teacher


def _remedy(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return (
            "because fp16 ends at 65,504 and a model that was trained in bf16 or fp32 may exceed it; set "
            "training.teacher_precision = bf16, or fp32 on a GPU without bf16"
        )
    return "whose range is fp32's; use another checkpoint, because this one is damaged or its training has diverged"


@torch.no_grad()
def not_finite(teacher: Teacher, batch: Batch, head: bool = True) -> str | None:
    """Return which of a teacher's outputs has a NaN or an infinity at a real token of a batch, or None.

    Args:
        teacher: The teacher.
        batch: A batch on the teacher's device.
        head: Whether its logits are among its outputs.
    """
    targets = teacher.targets(batch.input_ids, batch.attention_mask, head=head)
    real = torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.token_mask is None else batch.token_mask
    for site, states in targets.states.items():
        if not bool(states[real].isfinite().all()):
            return f"its {site.quantity} states are not finite in {_format(states)} on a batch of the corpus"
    for part in targets.decoder_input[real].split(_ROWS) if targets.decoder_input is not None else ():
        logits = torch.nn.functional.linear(part, teacher.decoder_weight, teacher.decoder_bias)
        if not bool(logits.isfinite().all()):
            return f"its logits are not finite in {_format(logits)} on a batch of the corpus"
    return None


def _format(values: Tensor) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[values.dtype]
