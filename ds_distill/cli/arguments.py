"""Options that several commands take, and their checks. This module imports neither torch nor transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ds_distill.config.recipe_file import setting_name
from ds_distill.config.values import UserPath
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.remote import is_url
from ds_distill.data.sources import check_inputs, check_weights
from ds_distill.models.families import FAMILIES
from ds_distill.models.folder import find_model_folder, resolve_model_folder
from ds_distill.recipe import Data, Losses, Recipe, Stage, Student, Training
from ds_distill.utils.errors import UserError, expand_user

SECTIONS = {"data": Data, "student": Student, "losses": Losses, "training": Training}
INPUTS = (
    "training text: txt, jsonl, csv, tsv or parquet files (also .gz and .zst), folders or glob patterns of them, or "
    "their URLs (s3://, gs://, https://), or data sets of the Hub, hf:NAME[:CONFIG][@SPLIT][#COLUMN]; FILE#COLUMN "
    "selects a column of a file"
)


def add_recipe(parser) -> None:
    """Add every setting of a recipe, by section."""
    for name, section in SECTIONS.items():
        parser.add_argument(f"--{name}", type=section, default=section())
    parser.add_argument(
        "--stages",
        type=list[Stage],
        default=[],
        help="parts of the run with losses and learnable layers of their own, each {share, losses, learnable, …}",
    )


def add_teacher(parser, remark: str = "") -> None:
    """Add --teacher."""
    parser.add_argument(
        "--teacher",
        type=UserPath,
        nargs="+",
        default=[],
        help=f"folder, or name on the Hugging Face Hub (NAME or NAME@REVISION), of a masked-LM model "
        f"({', '.join(FAMILIES)}), or with losses.kl 0 of any encoder; or several with one tokenizer, see "
        f"losses.teacher_weights{remark}",
    )


def add_model(parser) -> None:
    """Add --model, the model that a command makes smaller."""
    parser.add_argument(
        "--model",
        type=UserPath | None,
        default=None,
        help="folder, or name on the Hub, of a masked-LM model or an encoder, such as a teacher",
    )


def add_corpus(parser, help: str = INPUTS) -> None:
    """Add --corpus."""
    parser.add_argument("--corpus", "--input", type=UserPath, nargs="+", default=[], help=help)


def add_tokens(parser) -> None:
    """Add --tokens."""
    parser.add_argument(
        "--tokens", type=UserPath | None, default=None, help="folder written by prepare, used instead of --corpus"
    )


def add_tokenizer(parser) -> None:
    """Add --tokenizer."""
    help = "folder, or name on the Hub, of the tokenizer"
    parser.add_argument("--tokenizer", type=UserPath | None, default=None, help=help)


def add_heldout(parser) -> None:
    """Add --heldout."""
    help = "additional held-out texts; each is evaluated separately during training"
    parser.add_argument("--heldout", type=UserPath, nargs="+", default=[], help=help)


def add_unread_heldout(parser) -> None:
    """Add --heldout without using it, because a recipe written for distill may name held-out texts."""
    help = "a recipe for distill may name it; not read by this command"
    parser.add_argument("--heldout", type=UserPath, nargs="+", default=[], help=help)


def add_unread_teacher(parser) -> None:
    """Add --teacher without using it, because a recipe written for distill may name a teacher."""
    help = "a recipe for distill may name it; not read by this command"
    parser.add_argument("--teacher", type=UserPath, nargs="+", default=[], help=help)


def build_recipe(options) -> Recipe:
    """Return the recipe in parsed options."""
    sections = {name: build_section(options[name], section) for name, section in SECTIONS.items()}
    return Recipe(**sections, stages=list(options.stages or []))


def build_section(value: Any, section: Any) -> Any:
    """Return a parsed section as its dataclass; the defaults where a file has nothing under its name."""
    if value is None:
        return section()
    if isinstance(value, section):
        return value
    return section(**{key: vars(value)[setting_name(key)] for key in section.__dataclass_fields__})


def leaves_losses_open(options, recipe: Recipe) -> bool:
    """Return whether a user has chosen neither a recipe nor losses, which are then chosen for the number of tokens."""
    typed = any(key.partition(".")[0] == "losses" for key in options.typed)
    return options.config is None and recipe.leaves_losses_open and not typed


def check_recipe(options) -> Recipe:
    """Return the recipe in parsed options; raise UserError for a setting out of its range."""
    recipe = build_recipe(options)
    recipe.check()
    return recipe


def check_job(options) -> Recipe:
    """Return the recipe of a command that reads a corpus and writes into a folder.

    Raises UserError where the folder is missing, or where a setting does not fit its range or the inputs.
    """
    require_output(options)
    recipe = check_recipe(options)
    if recipe.data.weights and options.corpus:
        check_weights(recipe.data.weights, len(options.corpus))
    return recipe


def check_text_given(options, recipe: Recipe) -> None:
    """Raise UserError where a training command has no text, or would hold none of it out."""
    if not options.tokens and not options.corpus:
        raise UserError("--corpus is missing; give text files, or --tokens with a folder written by prepare")
    check_one_text(options)
    if not options.tokens and not recipe.data.heldout_fraction:
        raise UserError(
            "data.heldout_fraction = 0: part of the corpus must be held out from training to evaluate the model; "
            "give a value above 0"
        )


def check_one_text(options) -> None:
    """Raise UserError where text is typed that is not read, because there are prepared tokens."""
    if options.tokens and "corpus" in options.typed:
        raise UserError(
            f"--corpus {' '.join(options.corpus)}: is not read with --tokens {options.tokens}; leave one of them out"
        )


def require_output(options) -> None:
    """Raise UserError where a command that writes has no output folder."""
    if not options.output:
        raise UserError("--output is missing; give the folder for all files that the command writes")


def check_text_paths(options) -> None:
    """Raise UserError for inputs, held-out texts or a prepared folder that do not exist."""
    for inputs in ([] if options.tokens else options.corpus, options.heldout):
        if inputs:
            check_inputs(inputs)
    if options.tokens:
        TokenDataset.open(options.tokens, "train")


def check_teacher_paths(options) -> None:
    """Raise UserError where --teacher is given and holds no model."""
    for teacher in options.teacher:
        find_model_folder(teacher).check_files()


def check_start_path(options) -> None:
    """Raise UserError where student.from is given and holds no model."""
    if (start := build_recipe(options).student.from_) is not None:
        find_model_folder(start, "student.from =").check_files()


def check_tokenizer_folder(path: str, option: str) -> None:
    """Raise UserError where there is no folder of this name, and no hub model of it in the cache or to be fetched."""
    if not expand_user(path).is_dir():
        resolve_model_folder(path, option, weights=False)


def check_writable(output: str | Path) -> None:
    """Raise UserError where an output folder cannot be made or written."""
    if is_url(output):
        raise UserError(f"--output {output}: a URL; give a folder of this machine, and copy what is in it")
    output = Path(output)
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise UserError(f"--output {output}: {existing} is a file; choose another --output, or move the file away")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"--output {output}: no write permission in {existing}; choose another --output, or make the folder "
            "writable"
        )


def check_no_run(output: str | Path) -> None:
    """Raise UserError where an output folder cannot be written, or is a run's, whose summary.json would be replaced."""
    check_writable(output)
    if any((Path(output) / name).is_file() for name in ("run.json", "study.json")):
        raise UserError(
            f"--output {output}: the folder of a run or study, whose summary.json would be replaced; choose another "
            "--output"
        )
