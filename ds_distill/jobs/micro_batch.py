"""The micro-batch that the ranks of a job run."""

import copy
from collections.abc import Sequence

from ds_distill.data.shares import Shares
from ds_distill.estimate.estimate import choose_micro_batch
from ds_distill.models.folder import ModelFolder
from ds_distill.recipe import Recipe
from ds_distill.utils.console import log_once
from ds_distill.utils.errors import UserError

NOTABLE_FILL = 0.05  # from this share of rows that only fill up, a run reports it


def check_micro_batch(recipe: Recipe) -> None:
    """Raise UserError where a job without a teacher is asked to choose its micro-batch."""
    if recipe.training.micro_batch_size == "auto":
        raise UserError("training.micro_batch_size = auto: works with distill only; give a number")


def with_resolved_micro_batch(recipe: Recipe, teachers: Sequence[ModelFolder], ranks: int) -> Recipe:
    """Collective: return the recipe with the micro-batch that these ranks run."""
    recipe, requested = copy.deepcopy(recipe), recipe.training.micro_batch_size
    t = recipe.training
    # only distill, which has teachers, gets here with "auto"
    t.micro_batch_size = choose_micro_batch(recipe, teachers) if requested == "auto" else t.resolve_micro_batch(ranks)
    share, rest = divmod(t.global_batch_size, ranks)
    lines = []
    if requested not in ("auto", t.micro_batch_size):
        lines.append(
            f"micro-batch: {t.micro_batch_size} sequences, not {requested}: a rank's share of the global batch is "
            f"{f'{share} or {share + 1}' if rest else share}"
        )
    filled = Shares(t.global_batch_size, t.micro_batch_size, ranks).filled_fraction
    if filled > NOTABLE_FILL:
        lines.append(
            f"training.global_batch_size = {t.global_batch_size} on {ranks} ranks: {filled:.0%} of the computed rows "
            "are filler rows that top up the smaller shares; another number of ranks is faster"
        )
    for line in lines:
        log_once(line, line)  # once for all runs of a job
    return recipe
