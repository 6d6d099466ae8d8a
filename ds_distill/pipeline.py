"""The work of the commands, from texts to a summary: checks of all that can be checked, then tokens, then the job.

Tokens may take hours to make, so a mistake is told before.
"""

from dataclasses import replace
from pathlib import Path

from ds_distill.data.heldout import heldout_sets
from ds_distill.data.run_data import prepare_run_tokens, with_prepared_settings
from ds_distill.distributed.process_group import all_gather_object, broadcast_object, run_on_rank0
from ds_distill.jobs.distill import distill
from ds_distill.jobs.evaluate import evaluate_folders
from ds_distill.jobs.pretrain import pretrain
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.preflight import checks as preflight
from ds_distill.recipe import Losses, Recipe
from ds_distill.recipe_choice import choose_losses
from ds_distill.run_folder import RunFolder


def prepare_and_distill(
    recipe: Recipe,
    teachers: list[str],
    output: Path,
    *,
    corpus: list[str],
    tokens: str | None,
    heldout: list[str],
    choose: bool = False,
) -> dict:
    """Collective: distill a student of `teachers` from texts or prepared tokens.

    Args:
        recipe: The recipe.
        teachers: The folders or names of the teachers.
        output: The run's folder.
        corpus: The texts.
        tokens: The folder that `prepare` has made of texts, or None.
        heldout: Further held-out texts.
        choose: Whether to take the losses that the evidence favors for as many tokens, not the recipe's.
    """
    recipe = _check_job(recipe, corpus, tokens, heldout)
    if all(all_gather_object(choose)):  # where ranks differ, they are told so later
        recipe = replace(recipe, losses=_choose_losses(recipe, output, corpus, tokens))
    recipe.losses.weights_of_teachers(len(teachers))
    for teacher in teachers:
        preflight.fetch_model(teacher, "teacher =")
    if recipe.student.from_ is not None:
        preflight.fetch_model(recipe.student.from_, "student.from =")
    folders = [find_model_folder(teacher) for teacher in teachers]
    preflight.check_teachers(folders, recipe, Path(tokens) if tokens else None)
    recipe, data, held = _make_tokens(recipe, str(folders[0].path), output, corpus, tokens, heldout)
    return distill(recipe, folders, data, output, heldout=held)


def prepare_and_pretrain(
    recipe: Recipe,
    model: dict | str,
    tokenizer: str,
    output: Path,
    *,
    corpus: list[str],
    tokens: str | None,
    heldout: list[str],
) -> dict:
    """Collective: do as `pretrain` does, from texts or prepared tokens.

    Args:
        recipe: The recipe.
        model: As in `pretrain`.
        tokenizer: The tokenizer that makes the tokens.
        output: The run's folder.
        corpus: The texts.
        tokens: The folder that `prepare` has made of texts, or None.
        heldout: Further held-out texts.
    """
    recipe = _check_job(recipe, corpus, tokens, heldout)
    start: dict | ModelFolder
    if not tokens and tokenizer != model:
        preflight.fetch_model(tokenizer, "--tokenizer", weights=False)
    if isinstance(model, str):
        preflight.fetch_model(model, "--from")
        start = find_model_folder(model, "--from")
        preflight.check_encoder(start, recipe, tokenizer, Path(tokens) if tokens else None)
    else:
        start = model
        preflight.check_new_model(model, recipe)
    recipe, data, held = _make_tokens(recipe, tokenizer, output, corpus, tokens, heldout)
    return pretrain(recipe, start, data, output, heldout=held)


def prepare_and_evaluate(
    recipe: Recipe,
    models: list[str],
    output: Path | None,
    folder: Path,
    *,
    corpus: list[str],
    tokens: str | None,
    untrained: bool,
) -> list[dict]:
    """Collective: do as `evaluate_folders` does, on texts or prepared tokens.

    Args:
        recipe: The recipe.
        models: The folders or names of the models.
        output: The folder that the tokens belong to, or None.
        folder: Where the tokens of the texts are put.
        corpus: The texts.
        tokens: The folder of prepared tokens, or None.
        untrained: As in `evaluate_folders`.
    """
    recipe = with_prepared_settings(recipe, Path(tokens)) if tokens else recipe
    preflight.check_texts([] if tokens else corpus, [], recipe)
    for model in models:
        preflight.fetch_model(model, "--model")
    folders = [find_model_folder(model, "--model") for model in models]
    preflight.check_evaluated(folders, recipe, Path(tokens) if tokens else None)
    if not tokens:
        folder = prepare_run_tokens(corpus, str(folders[0].path), recipe, folder, bound=output)
        recipe = with_prepared_settings(recipe, folder)
    return evaluate_folders(folders, Path(tokens or folder), recipe, untrained)


def _choose_losses(recipe: Recipe, output: Path, corpus: list[str], tokens: str | None) -> Losses:
    """Collective: return what `choose_losses` returns on the first rank, which alone needs the texts."""
    chosen: list[Losses] = []
    run_on_rank0(lambda: chosen.append(choose_losses(recipe, corpus=corpus, tokens=tokens, output=output)))
    return broadcast_object(chosen[0] if chosen else None)


def _check_job(recipe: Recipe, corpus: list[str], tokens: str | None, heldout: list[str]) -> Recipe:
    """Collective: check what does not depend on a model; return the recipe with the settings of prepared tokens."""
    preflight.check_machine(recipe)
    recipe = with_prepared_settings(recipe, Path(tokens)) if tokens else recipe
    preflight.check_texts([] if tokens else corpus, heldout, recipe)
    return recipe


def _make_tokens(
    recipe: Recipe, tokenizer: str, output: Path, corpus: list[str], tokens: str | None, heldout: list[str]
) -> tuple[Recipe, Path, dict[str, Path]]:
    """Collective: make the last checks, then the tokens.

    Returns the recipe with the tokens' settings, their folder and the folders of the held-out
    texts.
    """
    preflight.check_engine(recipe)
    preflight.check_output(output, recipe)
    folder = (
        Path(tokens)
        if tokens
        else prepare_run_tokens(corpus, tokenizer, recipe, RunFolder(output).tokens, bound=output)
    )
    recipe = recipe if tokens else with_prepared_settings(recipe, folder)
    return recipe, folder, heldout_sets(heldout, folder, recipe, output)
