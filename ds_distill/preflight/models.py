"""Checks, by one process, that models are complete and fit a recipe and its tokens.

ds_distill.preflight.checks has the checks that the ranks of a job make together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from ds_distill.losses.terms import make_matches
from ds_distill.models.attention_mask import check_keeps_apart
from ds_distill.models.copying import check_tied
from ds_distill.models.families import check_positions, check_recomputes, get_family
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loading import load_masked_lm, load_teacher
from ds_distill.models.student import load_start
from ds_distill.models.student_plan import find_start, plan_student
from ds_distill.models.tokenizer_fit import check_vocabulary
from ds_distill.preflight.stages import objectives_of_stages
from ds_distill.recipe import Recipe
from ds_distill.utils.articles import with_article
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


def check_teachers_fit(
    teachers: Sequence[ModelFolder], recipe: Recipe, tokens: Path | None = None, tokenizer: str | None = None
) -> None:
    """Check teachers, and the model that the student starts from, against the recipe; values of weights are not read.

    Args:
        teachers: The teachers.
        recipe: The recipe that is to distill them.
        tokens: Prepared tokens, or None where a tokenizer will make them.
        tokenizer: The folder of that tokenizer, or None for the first teacher's own.

    Raises:
        UserError: Something does not fit.
    """
    first, logits = teachers[0], recipe.compares_logits
    for teacher in teachers:
        teacher.check_files()
    recipe.losses.weights_of_teachers(len(teachers))
    layer_map, config = plan_student(first.config, **asdict(recipe.student), dropout=recipe.training.dropout)
    if recipe.training.gradient_checkpointing:
        check_recomputes(config)
    further = [teacher.config for teacher in teachers[1:]]
    check_one_vocabulary(teachers, logits)
    if recipe.stages:
        objectives = objectives_of_stages(recipe, config, layer_map, [teacher.config for teacher in teachers])
        matches = [match for objective in objectives for _, match in objective.named_matches()]
    else:
        matches = list(make_matches(recipe.losses, config, first.config, layer_map, further).values())
    averaged = logits or any(match.averages_teachers for match in matches)
    if len(teachers) > 1 and recipe.need_teacher and not averaged:
        raise UserError(
            f"{teachers[1].title} teaches nothing: losses.kl is 0, and hidden states are compared with those of the "
            "first teacher alone; give one teacher, set losses.kl above 0, or match relations"
        )
    for teacher in teachers:
        check_reads_tokens(teacher, recipe, tokens, tokenizer or first.path)
        load_teacher(teacher, logits=logits, hollow=True)
    if recipe.student.from_ is None:  # a student of another class may have fewer positions than its teacher
        data = TokenDataset.open(tokens, "train").manifest if tokens else vars(recipe.data)
        check_positions(config, data["sequence_length"], "the student")
    else:
        start = find_start(recipe.student.from_).check_files()
        check_reads_tokens(start, recipe, tokens, tokenizer or first.path)
        load_start(start, head=recipe.need_vocabulary, hollow=True)


def check_teachers_complete(teachers: Sequence[ModelFolder], recipe: Recipe) -> None:
    """Raise UserError where a teacher, or the model that the student starts from, is not complete and sound.

    All values of their weights are read.
    """
    student = recipe.student
    for number, teacher in enumerate(teachers):
        model = load_teacher(teacher, logits=recipe.compares_logits)
        if number == 0 and recipe.need_vocabulary and student.from_ is None and student.init_layers != "random":
            check_tied(model)  # the student starts from its word embeddings
    if student.from_ is not None:
        load_start(find_start(student.from_), head=recipe.need_vocabulary)


def check_one_vocabulary(teachers: Sequence[ModelFolder], logits: bool) -> None:
    """Raise UserError where teachers have different tokenizers, or their logits different sizes.

    Args:
        teachers: The teachers.
        logits: Whether a term compares the student's logits with theirs.
    """
    first, *others = teachers
    for other in others:
        if first.has_tokenizer and other.has_tokenizer:
            prints = [tokenizer_fingerprint(folder.tokenizer)[:16] for folder in (first, other)]
            if prints[0] != prints[1]:
                raise UserError(
                    f"{other.title}: its tokenizer has the fingerprint {prints[1]}, that of {first.name} has "
                    f"{prints[0]}; give teachers that share one tokenizer"
                )
        sizes = [folder.config.vocab_size for folder in (first, other)]
        without = next((folder for folder in (other, first) if not folder.has_tokenizer), None)
        if without and sizes[0] != sizes[1]:
            raise UserError(
                f"{other.title} has embeddings of {sizes[1]} tokens, {first.name} of {sizes[0]}, and nothing tells "
                f"whether they share one tokenizer, which {without.name} lacks; add its tokenizer.json"
            )
        if logits and sizes[0] != sizes[1]:
            raise UserError(
                f"{other.title} has logits for {sizes[1]} tokens, {first.name} for {sizes[0]}, so that they have no "
                "mean; give teachers with one size of the vocabulary, or set losses.kl = 0"
            )


def check_complete(folder: ModelFolder, *, new_head: bool = False) -> None:
    """Raise UserError where a masked-LM folder is not complete and sound; all values of its weights are read.

    Args:
        folder: The model.
        new_head: The model may lack a head.
    """
    with torch.random.fork_rng(devices=[]):  # a new head draws from the generator
        load_masked_lm(folder, new_head=new_head)


def warn_if_teachers_unfit(teachers: Sequence[ModelFolder], recipe: Recipe, tokenizer: str | None) -> None:
    """Warn, while tokens are prepared, of what will keep the recipe from distilling the teachers.

    The user may still correct it in the meantime.
    """
    try:
        check_teachers_fit(teachers, recipe, tokenizer=tokenizer)
        check_teachers_complete(teachers, recipe)
    except UserError as error:
        log(f"warning: {error} (the tokens are prepared anyway, but distill will refuse this teacher)")


def check_reads_tokens(folder: ModelFolder, recipe: Recipe, tokens: Path | None, tokenizer: Path | str) -> None:
    """Raise UserError where a model cannot read the tokens as the recipe asks: prepared ones, or a tokenizer's.

    Args:
        folder: The model.
        recipe: The recipe.
        tokens: The prepared tokens, or None where there are none yet.
        tokenizer: The folder of the tokenizer that will make them.
    """
    data = recipe.data
    check_keeps_apart(folder.config, data.mode, data.attend_across_documents, folder.title)
    if tokens:
        check_fits_prepared_tokens(TokenDataset.open(tokens, "train"), folder)
        return
    check_positions(folder.config, recipe.data.sequence_length, folder.title)
    if tokenizer == folder.path:
        check_vocabulary(folder.tokenizer, folder.config, folder.title)
        return
    maker = load_tokenizer(tokenizer)
    if folder.has_tokenizer and tokenizer_fingerprint(folder.tokenizer) != tokenizer_fingerprint(maker):
        raise UserError(
            f"{folder.title}: its tokenizer differs from that of {tokenizer}, which would make the tokens; "
            "give models that share one tokenizer"
        )
    check_vocabulary(maker, folder.config, f"{folder.title} with the tokenizer of {tokenizer}")


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


def report_lost_head(folder: ModelFolder, model: PreTrainedModel) -> None:
    """Log that the head of a task, which a folder has, is no part of the model that was loaded from it."""
    classes = [name for name in folder.config.architectures or () if "For" in name and "MaskedLM" not in name]
    if classes and not get_family(model).has_head(model) and "PreTraining" not in classes[0]:
        log(
            f"{folder.title}: is {with_article(classes[0])}, whose head for a task is left out; what is written is a "
            "bare encoder: fine-tune it on the task again"
        )
