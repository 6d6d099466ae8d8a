"""The check, before a corpus is prepared, that every stage of a recipe fits its student and its teachers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.losses.objective import Objective
from ds_distill.models.loading import new_model
from ds_distill.recipe import Losses, Recipe
from ds_distill.stages import spans_of
from ds_distill.training.stages import Stages

ENOUGH = 10**9  # steps, of which every stage has some; how many the run has is not known yet


def objectives_of_stages(
    recipe: Recipe, student: PretrainedConfig, layer_map: Sequence[int] | None, teachers: Sequence[PretrainedConfig]
) -> list[Objective]:
    """Return the objectives of a recipe's stages, without values of weights.

    Args:
        recipe: The recipe.
        student: The student's config.
        layer_map: The teacher layer that each student layer starts from, or None where it starts from none.
        teachers: The teachers' configs.

    Raises:
        UserError: A stage does not fit.
    """
    first, *further = teachers

    def make(model: PreTrainedModel, losses: Losses) -> Objective:
        return Objective(model, losses, 1, first, layer_map, further)

    with torch.device("meta"):  # shapes are enough
        model = new_model(student, head=recipe.need_vocabulary)
    stages = Stages(spans_of(recipe, ENOUGH), model, first, make)
    return stages.objectives()
