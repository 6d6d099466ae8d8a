"""`distill`: trains a student of a teacher."""

from __future__ import annotations

from ds_distill.cli import arguments
from ds_distill.utils.errors import UserError

PURPOSE = "distill a teacher into a smaller student"


def add_arguments(parser) -> None:
    arguments.add_teacher(parser)
    arguments.add_corpus(parser)
    arguments.add_tokens(parser)
    arguments.add_heldout(parser)
    arguments.add_recipe(parser)


def check(options) -> None:
    recipe = arguments.check_job(options)
    if not options.teacher:
        raise UserError("--teacher is missing; give the folder or cached name of a masked-LM model")
    arguments.check_text_given(options, recipe)


def check_paths(options) -> None:
    arguments.check_text_paths(options)
    arguments.check_teacher_path(options)
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill import api

    return api.distill(
        arguments.build_recipe(options),
        teacher=options.teacher,
        output=options.output,
        corpus=options.corpus,
        tokens=options.tokens,
        heldout=options.heldout,
    ).details
