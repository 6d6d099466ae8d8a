"""Checks, by one process, that models are complete and fit a recipe and its tokens.

ds_distill.preflight.checks has the checks that the ranks of a job make together.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PretrainedConfig

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from ds_distill.losses.terms import make_matches
from ds_distill.models.families import check_positions
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import check_tied, find_start, plan_student
from ds_distill.models.tokenizer_fit import check_vocabulary
from ds_distill.recipe import Recipe
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


def check_teacher_fits(
    teacher: ModelFolder, recipe: Recipe, tokens: Path | None = None, tokenizer: str | None = None
) -> bool:
    """Check a teacher, and the model that the student starts from, against the recipe; values of weights are not read.

    Args:
        teacher: The teacher.
        recipe: The recipe that is to distill it.
        tokens: Prepared tokens, or None where a tokenizer will make them.
        tokenizer: The folder of that tokenizer, or None for the teacher's own.

    Returns:
        Whether the student starts from the teacher's weights.

    Raises:
        UserError: Something does not fit.
    """
    teacher.check_files()
    layer_map, config = plan_student(teacher.config, **asdict(recipe.student), dropout=recipe.training.dropout)
    if not recipe.stages:  # each of which has losses of its own, see check_stages_fit
        make_matches(recipe.losses, config, teacher.config, layer_map)
    check_reads_tokens(teacher, recipe, tokens, tokenizer or teacher.path)
    load_masked_lm(teacher, hollow=True)
    if recipe.student.from_ is not None:
        start = find_start(recipe.student.from_).check_files()
        check_reads_tokens(start, recipe, tokens, tokenizer or teacher.path)
        load_masked_lm(start, hollow=True)
    return layer_map is not None


def check_complete(folder: ModelFolder, *, new_head: bool = False, tied: bool = False) -> None:
    """Raise UserError where a masked-LM folder is not complete and sound; all values of its weights are read.

    Args:
        folder: The model.
        new_head: The model may lack a head.
        tied: The model's decoder must be its word embeddings.
    """
    with torch.random.fork_rng(devices=[]):  # a new head draws from the generator
        model = load_masked_lm(folder, new_head=new_head)
    if tied:
        check_tied(model)


def warn_if_teacher_unfit(teacher: ModelFolder, recipe: Recipe, tokenizer: str | None) -> None:
    """Warn, while tokens are prepared, of what will keep the recipe from distilling a teacher.

    The user may still correct it in the meantime.
    """
    try:
        check_complete(teacher, tied=check_teacher_fits(teacher, recipe, tokenizer=tokenizer))
        if recipe.student.from_ is not None:
            check_complete(find_start(recipe.student.from_))
    except UserError as error:
        log(f"warning: {error} (the tokens are prepared anyway, but distill will refuse this teacher)")


def check_reads_tokens(folder: ModelFolder, recipe: Recipe, tokens: Path | None, tokenizer: Path | str) -> None:
    """Raise UserError where a model cannot read the tokens: the prepared ones, or those that a tokenizer will make.

    Args:
        folder: The model.
        recipe: The recipe, which has the sequence length.
        tokens: The prepared tokens, or None where there are none yet.
        tokenizer: The folder of the tokenizer that will make them.
    """
    if tokens:
        check_fits_prepared_tokens(TokenDataset.open(tokens, "train"), folder)
        return
    check_positions(folder.config, recipe.data.sequence_length, folder.title)
    if tokenizer == folder.path:
        check_vocabulary(folder.tokenizer, folder.config, folder.title)
        return
    maker = load_tokenizer(tokenizer)
    check_vocabulary(maker, folder.config, f"{folder.title} with the tokenizer of {tokenizer}")
    if folder.has_tokenizer and tokenizer_fingerprint(folder.tokenizer) != tokenizer_fingerprint(maker):
        raise UserError(
            f"{folder.title}: its tokenizer differs from that of {tokenizer}, which would make the tokens; "
            "give models that share one tokenizer"
        )


def check_fits_prepared_tokens(store: TokenDataset, folder: ModelFolder) -> None:
    """Raise UserError where a model cannot read prepared tokens.

    The vocabulary size and the positions are checked, and where the folder has a tokenizer, the
    meaning of the ids.
    """
    check_sizes(store, folder.config, folder.title)
    if folder.has_tokenizer and tokenizer_fingerprint(folder.tokenizer) != store.manifest["tokenizer_fingerprint"]:
        raise UserError(
            f"{folder.title}: its tokenizer differs from the one that {store.path} was prepared with; "
            f"prepare the text with --tokenizer {folder.name}"
        )


def check_sizes(store: TokenDataset, config: PretrainedConfig, title: str) -> None:
    """Raise UserError where prepared tokens have more ids or longer sequences than a model of this config."""
    if store.manifest["vocab_size"] > config.vocab_size:
        raise UserError(
            f"{title} has a vocabulary of {config.vocab_size} tokens, but {store.path} was prepared with a tokenizer "
            f"of {store.manifest['vocab_size']}; prepare the text with the model's tokenizer"
        )
    check_positions(config, store.manifest["sequence_length"], title)
