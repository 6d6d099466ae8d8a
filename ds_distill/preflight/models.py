"""Checks, by one process, that models are complete and fit a recipe and its tokens.

ds_distill.preflight.job has the checks that the ranks of a job make together.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PretrainedConfig

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from ds_distill.models.families import check_positions
from ds_distill.models.folder import open_model_folder, resolve_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import check_tied, plan_student
from ds_distill.models.tokenizer_fit import check_vocabulary
from ds_distill.recipe import Recipe
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


def check_teacher_fits(
    teacher: str, recipe: Recipe, tokens: Path | None = None, tokenizer: str | None = None
) -> tuple[Path, bool]:
    """Check a teacher against the recipe in everything but the values of its weights.

    Args:
        teacher: The folder or name of the teacher.
        recipe: The recipe that is to distill it.
        tokens: Prepared tokens, or None where a tokenizer will make them.
        tokenizer: The folder of that tokenizer, or None for the teacher's own.

    Returns:
        (the teacher's folder, whether the student starts from its weights).

    Raises:
        UserError: Something does not fit.
    """
    folder, config = open_model_folder(teacher)
    student = recipe.student
    start, _ = plan_student(
        config,
        layers=student.init_layers,
        num_layers=student.num_layers,
        hidden=student.hidden_size,
        dropout=recipe.training.dropout,
        freeze_positions=student.freeze_positions,
    )
    check_reads_tokens(folder, config, f"teacher {teacher}", recipe, tokens, tokenizer or folder)
    load_masked_lm(teacher, hollow=True)
    return folder, start is not None


def check_complete(path: str, option: str = "teacher =", *, new_head: bool = False, tied: bool = False) -> None:
    """Raise UserError where a masked-LM folder is not complete and sound; all values of its weights are read.

    Args:
        path: The folder or name of the model.
        option: What errors begin with, before the path.
        new_head: The model may lack a head.
        tied: The model's decoder must be its word embeddings.
    """
    with torch.random.fork_rng(devices=[]):  # a new head draws from the generator
        model = load_masked_lm(path, option, new_head=new_head)
    if tied:
        check_tied(model)


def warn_if_teacher_unfit(teacher: str, recipe: Recipe, tokenizer: str | None) -> None:
    """Warn, while tokens are prepared, of what will keep the recipe from distilling a teacher.

    The user may still correct it in the meantime.
    """
    try:
        _, starts_from_it = check_teacher_fits(teacher, recipe, tokenizer=tokenizer)
        check_complete(teacher, tied=starts_from_it)
    except UserError as error:
        log(f"warning: {error} (the tokens are prepared anyway, but distill will refuse this teacher)")


def check_reads_tokens(
    folder: Path, config: PretrainedConfig, label: str, recipe: Recipe, tokens: Path | None, tokenizer: Path | str
) -> None:
    """Raise UserError where a model cannot read the tokens: the prepared ones, or those that a tokenizer will make.

    Args:
        folder: The model's folder.
        config: The model's config.
        label: What errors call the model.
        recipe: The recipe, which has the sequence length.
        tokens: The prepared tokens, or None where there are none yet.
        tokenizer: The folder of the tokenizer that will make them.
    """
    if tokens:
        check_fits_prepared_tokens(TokenDataset.open(tokens, "train"), config, label, str(folder))
        return
    check_positions(config, recipe.data.sequence_length, label)
    token_maker, is_own = load_tokenizer(tokenizer), tokenizer == folder
    check_vocabulary(token_maker, config, label if is_own else f"{label} with the tokenizer of {tokenizer}")
    if (
        not is_own
        and _has_tokenizer(folder)
        and tokenizer_fingerprint(load_tokenizer(folder)) != tokenizer_fingerprint(token_maker)
    ):
        raise UserError(
            f"{label}: its tokenizer differs from that of {tokenizer}, which would make the tokens; "
            "give models that share one tokenizer"
        )


def check_fits_prepared_tokens(
    store: TokenDataset, config: PretrainedConfig, label: str, folder: str | None = None
) -> None:
    """Raise UserError where a model cannot read prepared tokens.

    The vocabulary size and the positions are checked. For a model from a folder that has a
    tokenizer, the meaning of the ids is checked too.
    """
    if store.manifest["vocab_size"] > config.vocab_size:
        raise UserError(
            f"{label} has a vocabulary of {config.vocab_size} tokens, but {store.path} was prepared with a tokenizer "
            f"of {store.manifest['vocab_size']}; prepare the text with the model's tokenizer"
        )
    check_positions(config, store.manifest["sequence_length"], label)
    model_folder = resolve_model_folder(folder) if folder else None
    if (
        model_folder
        and _has_tokenizer(model_folder)
        and tokenizer_fingerprint(load_tokenizer(model_folder)) != store.manifest["tokenizer_fingerprint"]
    ):
        raise UserError(
            f"{label}: its tokenizer differs from the one that {store.path} was prepared with; "
            f"prepare the text with --tokenizer {folder}"
        )


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()
