"""The check, before a corpus is prepared, that every stage of a recipe fits its student and its teacher."""

from __future__ import annotations

from dataclasses import asdict

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from ds_distill.losses.objective import Objective
from ds_distill.models.folder import ModelFolder
from ds_distill.models.student import plan_student
from ds_distill.recipe import Losses, Recipe
from ds_distill.stages import spans_of
from ds_distill.training.stages import Stages

ENOUGH = 10**9  # steps, of which every stage has some; how many the run has is not known yet


def check_stages_fit(teacher: ModelFolder, recipe: Recipe) -> None:
    """Raise UserError for the first stage that does not fit; no weights are read."""
    if not recipe.stages:
        return
    layer_map, config = plan_student(teacher.config, **asdict(recipe.student), dropout=recipe.training.dropout)

    def make(model: PreTrainedModel, losses: Losses) -> Objective:
        return Objective(model, losses, 1, teacher.config, layer_map)

    with torch.device("meta"):  # shapes are enough
        student = AutoModelForMaskedLM.from_config(config)
    stages = Stages(spans_of(recipe, ENOUGH), student, teacher.config, make)
    for span in stages.spans:
        stages.objective_of(span)
