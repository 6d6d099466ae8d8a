"""What a command's arguments must be, told in the first second: what is missing, numbers out of range, and paths that lead nowhere.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import os
from pathlib import Path

from ds_distill.cli.parser import WITHOUT_RECIPE, recipe_of, section_of
from ds_distill.data.dataset import TokenStore
from ds_distill.data.sources import check_inputs, check_weights
from ds_distill.distributed import job
from ds_distill.finetune.config import Tuning, grid_of
from ds_distill.models.loading import check_model_files, read_config, resolve_model_folder
from ds_distill.recipe import Recipe
from ds_distill.tasks.columns import named_columns
from ds_distill.tasks.examples import split_files
from ds_distill.tasks.registry import task_of
from ds_distill.utils.errors import UserError, at_home

TOKENIZER_OF = {"run": "teacher", "distill": "teacher", "pretrain": "tokenizer", "evaluate": "model"}  # the option whose tokenizer makes the tokens
EVALUATED_IN = Path("runs/evaluate")  # --output of evaluate where it is not given
NO_RUN = "no run with a checkpoint; give the --output folder of distill or pretrain"


def check_arguments(command: str, options) -> None:
    """UserError for arguments with which the command cannot do its work."""
    if command not in WITHOUT_RECIPE:
        recipe = recipe_of(options)
        recipe.check()
        if recipe.data.weights and options.corpus and command not in ("evaluate", "plan"):
            check_weights(recipe.data.weights, len(options.corpus))
        _check_inputs_given(command, options, recipe)
    elif command == "export":
        _check_export(options)
    elif command == "finetune":
        _check_finetune(options)
    # of several ranks, one that fails before it has joined the others is waited for; and some of the paths need be there for the first alone
    if job.ranks() == 1:
        check_paths(command, options)


def _check_inputs_given(command: str, options, recipe: Recipe) -> None:
    if command == "plan":
        if not options.teacher:
            raise UserError("--teacher is missing")
        return
    if command == "prepare":
        if not (options.tokenizer or options.teacher) or not options.corpus:
            raise UserError("prepare needs --tokenizer, or a recipe with a teacher, and --corpus")
        return
    if command == "run" and not options.teacher:
        if options.heldout or options.tokens:
            raise UserError("--teacher is missing: --heldout and --tokens are for a teacher of yours; the demo makes its own")
        return
    if command == "run" and options.fresh:
        raise UserError("--fresh: of the job without --teacher only; choose another --output, or remove the folder")
    if command == "pretrain":
        options.tokenizer = options.tokenizer or options["from"]
    if not options[TOKENIZER_OF[command]]:
        raise UserError(f"--{TOKENIZER_OF[command]} is missing")
    if not options.tokens and not options.corpus:
        raise UserError("--corpus (text) is missing; or --tokens, made by prepare")
    if command != "evaluate" and not options.tokens and not recipe.data.heldout_fraction:
        raise UserError("data.heldout_fraction = 0: a run is measured on text of its own corpus that it does not read; give a share above 0")


def _check_export(options) -> None:
    if bool(options.run) == bool(options.model):
        raise UserError("export needs one of --run, the --output folder of distill or pretrain, and --model, a Hugging Face folder")
    if options.run and (options.encoder or options.data):
        option = "--encoder" if options.encoder else "--data"
        raise UserError(f"{option}: not with --run, whose model has a masked-LM head; give what was exported, or fine-tuned, as --model")
    if options.model and options.format == ["hf"]:
        raise UserError(f"--model {options.model} is a Hugging Face folder already: give a --format")


def _check_finetune(options) -> None:
    for key in ("task", "model"):
        if not options[key]:
            raise UserError(f"--{key} is missing")
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: at least one")
    if not 0 <= options.first_seed <= options.first_seed + options.seeds - 1 < 2**32:
        raise UserError(f"--first_seed {options.first_seed}: seeds lie between 0 and 2^32 − 1")
    task_of(options.task)
    tuning = section_of(options.tuning, Tuning)
    tuning.check()
    grid_of(tuning, options.grid or [])


def check_paths(command: str, options) -> None:
    """UserError for a path among the options at which the command would not find what it needs, or could not write."""
    given = {key: options.get(key) or None for key in ("tokens", "corpus", "heldout", "teacher", "tokenizer", "from", "model", "text", "data", "run")}
    if command in ("run", "distill", "pretrain", "evaluate") and given["tokens"]:
        given["corpus"] = None
    if command in ("prepare", "evaluate", "plan"):
        given["heldout"] = None
    if command in ("pretrain", "evaluate"):
        given["teacher"] = None
    if command == "plan":
        given["corpus"] = None
    for key in ("corpus", "heldout", "text"):
        if given[key]:
            check_inputs(given[key])
    if given["tokens"]:
        TokenStore.open(given["tokens"], "train")
    if command == "plan":
        read_config(resolve_model_folder(given["teacher"]), f"teacher = {given['teacher']}")
    elif command == "prepare":
        key = "tokenizer" if given["tokenizer"] else "teacher"
        check_tokenizer_folder(given[key], f"--{key}")
    elif command in ("run", "distill", "study") and given["teacher"]:
        check_model_files(given["teacher"])
    elif command == "pretrain":
        if given["from"]:
            check_model_files(given["from"], "--from")
        if given["tokenizer"] != given["from"] and not given["tokens"]:
            check_tokenizer_folder(given["tokenizer"], "--tokenizer")
    elif command in ("evaluate", "export", "finetune"):
        for model in given["model"] if command == "evaluate" else [given["model"]] * bool(given["model"]):
            check_model_files(model, "--model")
        if command == "finetune" and given["teacher"]:
            check_model_files(given["teacher"], "--teacher")
    if command == "finetune" and given["data"]:
        for split in ("train", *task_of(options.task).validation):
            split_files(at_home(given["data"]), split)
    if command == "export" and given["data"] and not named_columns(given["data"])[0].is_file():
        raise UserError(f"--data {given['data']}: no such file; give labelled examples, as for finetune")
    if command == "export" and given["run"] and not (at_home(given["run"]) / "model" / "config.json").is_file():
        raise UserError(f"--run {given['run']}: {NO_RUN}")
    if options.output or command == "evaluate":
        check_writable(Path(options.output or EVALUATED_IN))


def check_tokenizer_folder(path: str, option: str) -> None:
    """UserError where there is no folder and no cached hub model of this name."""
    if not at_home(path).is_dir():
        resolve_model_folder(path, option)


def check_writable(output: Path) -> None:
    """UserError where an output folder cannot be made or written."""
    there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--output {output}: {there} is a file; choose another --output, or make room there")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--output {output}: nothing can be written in {there}; choose another --output, or have it made writable")
