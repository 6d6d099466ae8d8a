"""`estimate`: estimates what a recipe will need on given machines, before anything runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.config.values import Name, UserPath
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.sources import check_weights
from ds_distill.estimate.corpora import CORPORA, EpochSize, parse_tokens, size_of_corpus
from ds_distill.estimate.hardware import DEVICES, find_device
from ds_distill.estimate.known_models import KNOWN_MODELS, KnownModel, find_known_model
from ds_distill.estimate.scaling import NETWORK, NETWORK_IS
from ds_distill.models.families import FAMILIES
from ds_distill.models.folder import ModelFolder, find_model_folder, read_config
from ds_distill.reporting.closing import format_closing
from ds_distill.reporting.tables import aligned
from ds_distill.utils.errors import UserError, did_you_mean, expand_user

PURPOSE = "estimate memory per ZeRO stage, steps, hours and cost before a run; suggest changes if it does not fit"
EXAMPLES = r"""
ds-distill estimate --teacher google-bert/bert-base-uncased \
    --corpus wikipedia+bookcorpus --gpu h100 --ranks 8
ds-distill estimate --teacher models/teacher --training.max_tokens 1B
ds-distill estimate --teacher models/teacher --tokens runs/tokens \
    --training.micro_batch_size auto
"""
COMMON_OPTIONS = (
    "teacher",
    "corpus",
    "tokens",
    "gpu",
    "ranks",
    "memory_gib",
    "price",
    "tokens_per_second",
    "training.max_tokens",
    "training.epochs",
    "training.global_batch_size",
    "training.micro_batch_size",
    "training.deepspeed",
    "data.sequence_length",
)


def add_arguments(parser) -> None:
    parser.add_argument(
        "--teacher",
        type=UserPath,
        nargs="+",
        default=[],
        help="config.json or a folder that contains it, a name in the Hugging Face cache, or a well-known name such as "
        "google-bert/bert-base-uncased; or several of these. Weights are not needed. Supported model types: "
        f"{', '.join(FAMILIES)}",
    )
    arguments.add_corpus(
        parser,
        f"length of an epoch: known corpora ({', '.join(CORPORA)}), several of them joined by +, their data sets on "
        "the Hub, or the size of English text (16GB); files may be named too, but are not read by this command",
    )
    parser.add_argument("--ranks", type=int, default=1, help="total number of devices")
    parser.add_argument(
        "--gpu",
        type=Name | None,
        default=None,
        help=f"kind of GPU to estimate for, which need not be here ({', '.join(DEVICES)}); by default this machine's "
        "device",
    )
    parser.add_argument(
        "--memory_gib",
        type=float | None,
        default=None,
        help="memory per device in GiB; by default that of --gpu, or this machine's. Without --gpu, precision and "
        "throughput are always those of this machine, so run the command on the kind of device that you will train on",
    )
    parser.add_argument(
        "--tokens_per_second",
        type=float | None,
        default=None,
        help="throughput of all ranks together; when not given, that of --gpu, or measured briefly on this machine",
    )
    parser.add_argument(
        "--price",
        type=float | None,
        default=None,
        help="US dollars per device and hour; by default a price of --gpu, which the estimate states",
    )
    parser.add_argument(
        "--network",
        type=float,
        default=NETWORK,
        help="GB per second that each device can send to others, for the table of how a step scales with more devices "
        f"and for the rate of more than one node (default {NETWORK:g}: {NETWORK_IS})",
    )
    parser.add_argument(
        "--tokens",
        type=UserPath | None,
        default=None,
        help="length of an epoch, used instead of --corpus: a number of tokens (3.2B) or a folder written by prepare",
    )
    arguments.add_unread_heldout(parser)
    arguments.add_recipe(parser)


def check(options) -> None:
    recipe = arguments.check_recipe(options)
    if not options.teacher:
        raise UserError("--teacher is missing; give a folder with config.json, or the name of a known or cached model")
    recipe.losses.weights_of_teachers(len(options.teacher))
    if options.gpu:
        find_device(options.gpu)
    _epoch_size(options)


def check_paths(options) -> None:
    if folder := _prepared_folder(options):
        TokenDataset.open(folder, "train")
    _find_models(options)
    if options.output:
        arguments.check_no_run(options.output)


def _prepared_folder(options) -> str | None:
    """Return the folder that --tokens names; None where it gives a number, or is not given."""
    return options.tokens if options.tokens and not parse_tokens(options.tokens) else None


def _epoch_size(options) -> EpochSize | None:
    """Return the length of an epoch as --tokens or --corpus state it; None where they do not."""
    if options.tokens:
        return parse_tokens(options.tokens)
    weights = arguments.build_recipe(options).data.weights
    if weights and options.corpus:
        check_weights(weights, len(options.corpus))
    return size_of_corpus(options.corpus, weights)


def _find_models(options) -> tuple[list[ModelFolder | KnownModel], ModelFolder | KnownModel | None]:
    """Return the teachers, and the model that student.from names, if it does."""
    start = arguments.build_recipe(options).student.from_
    teachers = [_find_model(name, "teacher") for name in options.teacher]
    return teachers, None if start is None else _find_model(start, "student.from")


def _find_model(name: str, role: str) -> ModelFolder | KnownModel:
    """Return a model of which at least the config is at hand: in a folder, in the cache, or in the table."""
    path = expand_user(name)
    known = None if path.exists() else find_known_model(name, role)
    try:
        is_config = path.name == "config.json" and path.is_file()
        model = find_model_folder(str(path.parent) if is_config else name, f"{role} =", fetch=False)
        read_config(model.path, model.given)
    except UserError as error:
        if known:
            return known
        if path.exists() or "Hugging Face cache" not in str(error):
            raise
        raise UserError(
            f"{role} = {name}: no such folder, no model of that name in the Hugging Face cache, and not a known one "
            f"({', '.join(KNOWN_MODELS)}); fetch its config.json, which is enough here, with "
            f"`hf download {name} config.json`" + did_you_mean(name, KNOWN_MODELS, cutoff=0.7)
        ) from None
    return model


def run(options) -> dict:
    from ds_distill.data.run_data import with_prepared_settings
    from ds_distill.data.token_files import read_manifest
    from ds_distill.estimate.plan import plan
    from ds_distill.estimate.report import format_plan
    from ds_distill.preflight.checks import check_deepspeed
    from ds_distill.recipe_choice import losses_for
    from ds_distill.utils.console import is_first, spinner

    recipe = arguments.build_recipe(options)
    check_deepspeed(recipe.training)
    folder = _prepared_folder(options)
    if folder:
        recipe = with_prepared_settings(recipe, Path(folder))
    teachers, start = _find_models(options)
    epoch = _epoch_size(options)
    per_epoch = read_manifest(Path(folder))["real_tokens"]["train"] if folder else epoch and epoch.tokens
    tokens = recipe.training.max_tokens or (per_epoch and recipe.training.epochs * per_epoch)
    if tokens and arguments.leaves_losses_open(options, recipe):
        recipe = replace(recipe, losses=losses_for(tokens))
    with spinner("estimating"):
        estimate = plan(
            recipe,
            teachers,
            folder,
            options.ranks,
            options.memory_gib,
            options.tokens_per_second,
            options.gpu,
            epoch,
            options.price,
            start,
            options.network,
        )
    if is_first():
        print(format_plan(estimate) + "\n")
    return estimate


def closing(options, summary: dict) -> str:
    return format_closing(aligned([("files", str(Path(options.output) / "summary.json"))]) if options.output else "")
