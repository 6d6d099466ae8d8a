"""`prepare`: turns text into tokens on disk."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.data.sources import check_inputs
from ds_distill.utils.errors import UserError

PURPOSE = "tokenize text once, for later commands"
REPORTED = (
    "mode",
    "blocks",
    "real_tokens",
    "documents",
    "found",
    "characters",
    "remarks",
    "unknown_share",
    "sources",
    "fingerprint",
)


def add_arguments(parser) -> None:
    arguments.add_teacher(parser, "; its tokenizer is used when --tokenizer is not given")
    arguments.add_corpus(parser)
    arguments.add_tokenizer(parser)
    arguments.add_unread_heldout(parser)
    arguments.add_recipe(parser)


def check(options) -> None:
    arguments.check_job(options)
    if not (options.tokenizer or options.teacher) or not options.corpus:
        raise UserError("prepare needs --corpus, and --tokenizer or a recipe with a teacher")


def check_paths(options) -> None:
    check_inputs(options.corpus)
    option = "tokenizer" if options.tokenizer else "teacher"
    arguments.check_tokenizer_folder(options[option], f"--{option}")
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.data.run_data import prepare_tokens
    from ds_distill.data.tokenizer import load_tokenizer
    from ds_distill.models.folder import find_model_folder
    from ds_distill.preflight.models import warn_if_teacher_unfit

    recipe = arguments.build_recipe(options)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    if options.teacher:
        teacher = find_model_folder(options.teacher)
        tokenizer = tokenizer or teacher.tokenizer
        warn_if_teacher_unfit(teacher, recipe, options.tokenizer)
    manifest = prepare_tokens(options.corpus, tokenizer, Path(options.output), recipe)
    return {"output": options.output, **{key: manifest[key] for key in REPORTED}}
