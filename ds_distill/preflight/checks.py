"""Checks that the ranks of a job make before its corpus is prepared, which takes hours.

They find out whether the ranks can run the recipe, and whether its texts and models are there and
fit.
"""

from __future__ import annotations

import importlib.util
import math
import socket
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from ds_distill.data.readers import read
from ds_distill.data.sources import check_inputs, split_inputs
from ds_distill.distributed import launch_environment
from ds_distill.distributed.process_group import (
    all_gather_object,
    broadcast_object,
    run_on_rank0,
    start_distributed,
)
from ds_distill.models.families import check_positions
from ds_distill.models.folder import ModelFolder, resolve_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.preflight.models import (
    check_complete,
    check_reads_tokens,
    check_teachers_complete,
    check_teachers_fit,
)
from ds_distill.recipe import Recipe, Training
from ds_distill.run_folder import RunFolder, check_run_identity, check_shared
from ds_distill.tracking.choice import check_installed
from ds_distill.training.deepspeed_config import deepspeed_config
from ds_distill.training.deepspeed_json import check_deepspeed_json
from ds_distill.training.device import local_device, resolve_dtype
from ds_distill.training.engine import Engine
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError, did_you_mean, expand_user
from ds_distill.utils.hub import find_cached

# section of a DeepSpeed JSON: its package
MONITORS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml", "csv_monitor": "csv"}


def check_machine(recipe: Recipe) -> None:
    """Collective: raise UserError where these ranks cannot run the recipe.

    They must be able to run as the recipe and its DeepSpeed JSON ask.
    """
    # a rank that joins and is then lost is missed within seconds, while one that never comes is
    # waited for
    start_distributed()
    run_on_rank0(lambda: check_installed(recipe.training.report_to, "training.report_to"))
    device = local_device(recipe.training.device)
    if recipe.training.precision != "auto":  # "auto" is measured
        resolve_dtype(recipe.training, device)
    check_deepspeed(recipe.training)


def check_deepspeed(training: Training) -> None:
    """Raise UserError for what DeepSpeed's own parser does not read or take in the DeepSpeed JSON, if there is one."""
    if training.deepspeed is None:
        return
    smallest = _minimal_training(training)
    config, prefix = smallest.deepspeed_json(), f"training.deepspeed = {smallest.deepspeed}"
    check_deepspeed_json(prefix, config, deepspeed_config(smallest, 1, torch.float32))
    for section, package in MONITORS.items():
        if config.get(section, {}).get("enabled") is True and importlib.util.find_spec(package) is None:
            raise UserError(
                f"{prefix}: {section}.enabled = true: needs the package {package}, which is not installed; run "
                f"pip install {package}, or set it to false"
            )
        path = config.get(section, {}).get("output_path")
        if path and config[section].get("enabled") is True:
            try:
                Path(path).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{prefix}: {section}.output_path = {path}: {error.strerror}; choose another folder"
                ) from error


def check_engine(recipe: Recipe) -> None:
    """Collective: raise UserError where DeepSpeed does not start with the recipe's optimizer and DeepSpeed JSON.

    A model of two numbers is started with them, because DeepSpeed checks many of its settings
    nowhere else.
    """
    training = _minimal_training(recipe.training)
    if training.deepspeed is None and training.optimizer in ("auto", "torch"):
        return
    device = local_device(training.device)
    dtype = resolve_dtype(training, device)

    def start_error(leave_out: tuple[str, ...] = ()) -> Exception | None:
        try:
            Engine(
                nn.Linear(1, 1),
                training,
                accumulation=1,
                total_steps=1,
                device=device,
                dtype=dtype,
                leave_out=(*MONITORS, *leave_out),
            ).destroy()
        except UserError:
            raise
        except Exception as error:  # DeepSpeed raises whatever breaks first
            return error
        return None

    error = start_error()
    # Starting is collective: where one rank failed alone, the others must not be asked to start again.
    everywhere = all(all_gather_object(error is not None))
    if error is None:
        return
    words = " ".join(str(error).split())[:300] or traceback.extract_tb(error.__traceback__)[-1].line
    if not training.deepspeed:
        raise UserError(
            f"training.optimizer = {training.optimizer}: DeepSpeed fails to start with it "
            f"({type(error).__name__}: {words}); choose another optimizer"
        ) from error
    config = training.deepspeed_json()
    keys = [key for key in config if key != "zero_optimization"]
    keys += [f"zero_optimization.{key}" for key in config.get("zero_optimization", {}) if key != "stage"]
    if len(keys) == 1:
        key = keys[0]
    else:
        without = (key for key in keys if everywhere and all(all_gather_object(start_error((key,)) is None)))
        key = next(without, "")
    raise UserError(
        f"training.deepspeed = {training.deepspeed}: {key}{': ' * bool(key)}DeepSpeed fails to start with it "
        f"({type(error).__name__}: {words}); correct it, or remove it"
    ) from error


def _minimal_training(training: Training) -> Training:
    """Return the same settings for a model without an encoder, one sequence at a time."""
    return replace(training, encoder_learning_rate=None, micro_batch_size=1)


def check_texts(corpus: list[str], heldout: list[str], recipe: Recipe) -> None:
    """Collective: raise UserError for a text that is missing, and for a held-out text with nothing in it.

    Held-out texts would be read last. Only the first rank needs to see the texts.
    """

    def check_inputs_and_heldout() -> None:
        check_inputs(corpus)
        for text in heldout:
            pieces = split_inputs([text], column=recipe.data.column, streaming=recipe.data.streaming)
            if not any(document.text for piece in pieces for document in read(piece)):
                raise UserError(f"--heldout {text}: contains no text; give another file, or leave it out")

    run_on_rank0(check_inputs_and_heldout)


def fetch_model(name: str, option: str, *, weights: bool = True) -> None:
    """Collective: put a model of the Hub into the cache of every host; UserError on all ranks where it cannot be.

    The first rank fetches it. Where a host has a cache of its own, the first of its ranks does so
    after that, while all others wait. A folder is left alone.

    Args:
        name: The folder or the name of the model.
        option: The option or key that it was given to.
        weights: As in `resolve_model_folder`.
    """
    is_local, world = expand_user(name).is_dir(), launch_environment.world_size()

    def resolve() -> None:
        if world > 1 and not is_local and find_cached(name) is None:
            log(f"{option} {name}: fetched by the first of {world} processes, while the others wait")
        resolve_model_folder(name, option, weights=weights)

    run_on_rank0(resolve)
    if world == 1 or broadcast_object(is_local):
        return
    rank, cached = torch.distributed.get_rank(), find_cached(name) is not None
    hosts = all_gather_object(None if cached else socket.gethostname())
    problem = None
    if not cached and hosts.index(socket.gethostname()) == rank:
        try:
            resolve_model_folder(name, option, weights=weights)
        except UserError as error:
            problem = f"{error} (on {socket.gethostname()})"
    if problems := [text for text in all_gather_object(problem) if text]:
        raise UserError(problems[0])


def check_output(output: Path, recipe: Recipe) -> None:
    """Collective: raise UserError where an output folder has a run of another recipe, or a host does not see it."""
    run_on_rank0(lambda: check_run_identity(output, recipe.identity(), recipe.training.resume))
    if torch.distributed.get_world_size() > 1:
        run_on_rank0(lambda: _touch(RunFolder(output).lock))
        check_shared(RunFolder(output).lock)


def _touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def check_teachers(teachers: list[ModelFolder], recipe: Recipe, tokens: Path | None = None) -> None:
    """Collective: raise UserError where the recipe cannot distill these teachers from these tokens.

    The first one's tokenizer makes the tokens where none are prepared yet.
    """
    check_teachers_fit(teachers, recipe, tokens)
    # many ranks that read gigabytes at once would slow each other down
    run_on_rank0(lambda: check_teachers_complete(teachers, recipe))


def check_encoder(encoder: ModelFolder, recipe: Recipe, tokenizer: str, tokens: Path | None = None) -> None:
    """Collective: raise UserError where an encoder cannot be pretrained further.

    Args:
        encoder: The encoder.
        recipe: The recipe.
        tokenizer: The folder whose tokenizer makes the tokens where none are prepared yet.
        tokens: The prepared tokens, or None.
    """
    encoder.check_files()
    check_reads_tokens(encoder, recipe, tokens, encoder.path if tokenizer == encoder.name else tokenizer)
    load_masked_lm(encoder, new_head=True, hollow=True)
    run_on_rank0(lambda: check_complete(encoder, new_head=True))


def check_new_model(sizes: dict, recipe: Recipe) -> None:
    """Raise UserError where no BERT has these sizes, or it could not read the recipe's sequences."""
    known = BertConfig().to_dict()
    for key, value in sizes.items():
        if key in ("vocab_size", "pad_token_id"):
            raise UserError(f"--model {key}: the tokenizer determines it; leave it out")
        if key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            raise UserError(f"--model {key}: leave it out, and set training.dropout instead")
        if key not in known:
            raise UserError(f"--model {key}: not a setting of transformers' BertConfig{did_you_mean(key, known)}")
        if isinstance(known[key], float):
            if not 0 < value < math.inf:
                raise UserError(f"--model {key} = {value}: must be more than 0")
        elif isinstance(value, float) or value < 1:
            raise UserError(f"--model {key} = {value}: must be a whole number, 1 or more")
    try:
        with torch.device("meta"):
            config = BertForMaskedLM(BertConfig(**sizes)).config
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise UserError(f"--model {sizes}: a BERT of these sizes cannot be built ({error}); correct them") from error
    check_positions(config, recipe.data.sequence_length, "the model")


def check_evaluated(models: list[ModelFolder], recipe: Recipe, tokens: Path | None = None) -> None:
    """Collective: raise UserError where a model does not read the tokens, or is not whole.

    The first model's tokenizer makes the tokens where none are prepared yet.
    """
    for model in models:
        model.check_files()
        check_reads_tokens(model, recipe, tokens, models[0].path)
        load_masked_lm(model, hollow=True)
        run_on_rank0(partial(check_complete, model))
