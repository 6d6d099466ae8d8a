"""The held-out figures of a run's teachers, under the student's masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ds_distill.losses.objective import Objective, judge_guesses
from ds_distill.models.ensemble import Ensemble
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loading import load_teacher
from ds_distill.models.teacher import Teacher
from ds_distill.training.evaluation import evaluate
from ds_distill.training.trainer import Trainer
from ds_distill.utils.console import progress_over


def evaluate_teachers(trainer: Trainer, folders: Sequence[ModelFolder]) -> dict[str, dict]:
    """Collective: return the teacher's figures on each held-out set; of several teachers those of their mean logits.

    The teachers are not of use for training afterwards. Those that have taught without their heads, which were dropped,
    are loaded again; of several, the first is then measured, since no mean of logits has been taught.

    Args:
        trainer: The trainer, which has finished.
        folders: The teachers' folders. They have masked-LM heads.
    """
    teacher = trainer.teacher
    assert teacher is not None
    if not teacher.has_head:
        dtype = next(teacher.models[0].parameters()).dtype
        model = load_teacher(folders[0], logits=True)
        teacher = Teacher(model.to(device=trainer.device, dtype=dtype))  # type: ignore[call-arg]  # wrong in transformers
    if isinstance(teacher, Ensemble):
        run: nn.Module = _MeanGuesses(teacher)
    else:
        world = torch.distributed.get_world_size()
        run = Objective(teacher.model, trainer.objective.losses.without_teacher(), world).eval()
    figures = {}
    for name, make_batches in trainer.heldout.items():
        batches = progress_over(make_batches(), f"teacher's evaluation{f', {name}' if name else ''}")
        figures[name] = evaluate(run, batches, trainer.device)
    return figures


class _MeanGuesses(nn.Module):
    """The guesses of several teachers' mean logits, as `evaluate` asks an Objective for its own."""

    def __init__(self, teachers: Ensemble):
        super().__init__()
        self.teachers = teachers

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, labels: Tensor, mode: str
    ) -> tuple[Tensor, Tensor]:
        masked = labels >= 0
        targets = self.teachers.targets(input_ids, attention_mask, sites=())
        assert targets.decoder_input is not None and targets.decoder_weight is not None  # they have heads
        logits = nn.functional.linear(targets.decoder_input[masked], targets.decoder_weight, targets.decoder_bias)
        return judge_guesses(logits, labels[masked])
