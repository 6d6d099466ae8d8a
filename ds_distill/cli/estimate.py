"""`estimate`: estimates what a recipe will need on given machines, before anything runs."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.data.dataset import TokenDataset
from ds_distill.models.folder import find_model_folder, read_config
from ds_distill.utils.errors import UserError

PURPOSE = (
    "estimate, before a run, parameters, memory per ZeRO stage, steps and hours; suggest changes if it does not fit"
)


def add_arguments(parser) -> None:
    arguments.add_teacher(parser)
    arguments.add_corpus(
        parser, "as for prepare; not read by this command, which takes the length of an epoch from --tokens"
    )
    parser.add_argument("--ranks", type=int, default=1, help="total number of devices")
    parser.add_argument(
        "--memory_gib",
        type=float | None,
        default=None,
        help="memory per device in GiB; by default this machine's. Precision and throughput are always those of this "
        "machine, so run the command on the kind of device that you will train on",
    )
    parser.add_argument(
        "--tokens_per_second",
        type=float | None,
        default=None,
        help="throughput of all ranks together; measured briefly on this machine when not given",
    )
    arguments.add_tokens(parser)
    arguments.add_unread_heldout(parser)
    arguments.add_recipe(parser)


def check(options) -> None:
    arguments.check_recipe(options)
    if not options.teacher:
        raise UserError("--teacher is missing; give the folder or cached name of a masked-LM model")


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
    from ds_distill.preflight.checks import check_deepspeed

    recipe = arguments.build_recipe(options)
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
    estimate.print_plan(estimated)
    return estimated
