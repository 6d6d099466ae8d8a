"""`estimate`: estimates what a recipe will need on given machines, before anything runs."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.data.dataset import TokenDataset
from ds_distill.models.folder import find_model_folder, read_config
from ds_distill.utils.errors import UserError

PURPOSE = "before a run: parameters, memory by ZeRO stage, steps, hours, whether it fits and what to change"


def add_arguments(parser) -> None:
    arguments.add_teacher(parser)
    arguments.add_corpus(parser, "as for prepare; not read here: how long an epoch is, --tokens tells")
    parser.add_argument("--ranks", type=int, default=1, help="devices in all")
    parser.add_argument(
        "--memory_gib",
        type=float | None,
        default=None,
        help="memory of a device; this machine's when not given. Precision and rate are this machine's in any case: "
        "ask where there is such a device",
    )
    parser.add_argument(
        "--tokens_per_second",
        type=float | None,
        default=None,
        help="of all ranks together; measured here, briefly, when not given",
    )
    arguments.add_tokens(parser)
    arguments.add_unread_heldout(parser)
    arguments.add_recipe(parser)


def check(options) -> None:
    arguments.check_recipe(options)
    if not options.teacher:
        raise UserError("--teacher is missing")


def check_paths(options) -> None:
    if options.tokens:
        TokenDataset.open(options.tokens, "train")
    teacher = find_model_folder(options.teacher)
    read_config(teacher.path, teacher.given)
    if options.output:
        arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.data.run_data import with_prepared_settings
    from ds_distill.estimate import estimate
    from ds_distill.preflight.job import check_deepspeed

    recipe = arguments.recipe_of(options)
    check_deepspeed(recipe.training)
    if options.tokens:
        recipe = with_prepared_settings(recipe, Path(options.tokens))
    estimated = estimate.plan(
        recipe,
        find_model_folder(options.teacher),
        options.tokens,
        options.ranks,
        options.memory_gib,
        options.tokens_per_second,
    )
    estimate.show(estimated)
    return estimated
