"""The tuning of a masked-LM teacher on several tasks at once: one encoder, a head for each task, one run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, PrinterCallback

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import BatchLoader
from ds_distill.data.run_data import (
    default_recipe,
    is_prepared,
    make_masker,
    open_heldout,
    prepare_tokens,
    text_fingerprint,
    with_prepared_settings,
)
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import encode_sets, load_data
from ds_distill.finetune.features import Collator
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.notices import log_not_read
from ds_distill.finetune.one_run import memory_remedy, resolve_precision
from ds_distill.finetune.trainer import (
    SAVE_EVERY,
    ProgressBar,
    ReportCallback,
    find_checkpoint,
    make_arguments,
    train,
)
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.low_rank import count_with_factors, get_rank, restore_factors, set_rank
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.models.tokenizer_fit import check_vocabulary
from ds_distill.multitask.model import MultitaskModel
from ds_distill.multitask.order import Steps, count_steps, take_batch
from ds_distill.multitask.results import TaskScores, export_teacher, finished_before, save_task, score_task, summarize
from ds_distill.multitask.run import Run
from ds_distill.multitask.settings import settings_read
from ds_distill.multitask.trainer import MultitaskTrainer
from ds_distill.preflight.models import check_fits_prepared_tokens
from ds_distill.recipe import Recipe
from ds_distill.reporting import provenance
from ds_distill.reporting.run_text import describe_device, describe_model
from ds_distill.run_folder import RunFolder, locked_run_folder_alone
from ds_distill.run_record import write_record
from ds_distill.tasks.catalog import Task
from ds_distill.tracking.trackers import Trackers
from ds_distill.training.device import default_device
from ds_distill.utils.console import log_header, progress
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_json, write_summary
from ds_distill.utils.memory import retain_freed_memory
from ds_distill.utils.resources import explain_disk_full, explain_out_of_memory


def multitask(
    tasks: Sequence[Task],
    model: str,
    output: Path,
    *,
    settings: FinetuneConfig,
    seed: int = 0,
    mlm_fraction: float = 0.0,
    data: str | None = None,
    corpus: Sequence[str] = (),
    tokens: str | None = None,
    report_to: Sequence[str] = ("tensorboard",),
) -> dict:
    """Tune a masked-LM model on several tasks at once; it stays a masked-LM model.

    Each step trains on one task, drawn with a probability proportional to the square root of its number of examples.
    Source: Liu et al. 2023, ERNIE 3.0 Tiny, where such a teacher is distilled without tasks.

    Args:
        tasks: The tasks.
        model: The folder, or name on the Hub, of the masked-LM model.
        output: The run's folder.
        settings: Those of the training.
        seed: The seed of heads, order and dropout.
        mlm_fraction: The share of steps of masked LM on the text, against drift.
        data: A folder with a folder per task; None for the Hub's data sets.
        corpus: Text, of which a part is held out to measure masked LM before and after.
        tokens: A folder of prepared tokens instead.
        report_to: The trackers.

    Returns:
        The summary: `tasks`, with the scores of each on its dev sets; the held-out masked-LM figures after
        (`heldout_…`) and before (`teacher_heldout_…`), and `export`, the folder of the tuned masked-LM model.
    """
    teacher = find_model_folder(model, "--model")
    untuned = load_masked_lm(teacher)
    check_vocabulary(teacher.tokenizer, untuned.config, teacher.given)
    all_data = {
        task.name: load_data(task, str(Path(data) / task.name) if data and not task.own else None) for task in tasks
    }
    identity = {
        "tasks": list(all_data),
        "model": weights_fingerprint(untuned)[:16],
        "text": text_fingerprint(list(corpus), tokens),
        "seed": seed,
        "mlm_fraction": mlm_fraction,
        **{f"data of {name}": part.fingerprint for name, part in all_data.items()},
        **{f"finetune.{name}": value for name, value in settings_read(settings).items()},
    }
    parameters = count_with_factors(untuned, teacher.linear_rank)
    described = describe_model(untuned.config, parameters)
    del untuned
    with locked_run_folder_alone(output, identity, remedy="remove it, or choose another --output"):
        if finished := finished_before(output):
            return finished
        recipe, text_folder = _prepare_text(teacher, output, list(corpus), tokens)
        tokenizer, positions = teacher.tokenizer, teacher.positions
        sets = {name: encode_sets(part, tokenizer, settings, positions) for name, part in all_data.items()}
        for name, part in all_data.items():
            log_not_read(part, sets[name], settings, positions, tokenizer)
        device = default_device()
        if device.type == "cpu":
            retain_freed_memory()
        hub_sets = [] if data else [task.hub[0] for task in tasks if not task.own]
        origin = provenance.from_model(
            teacher.path,
            datasets=list(dict.fromkeys([*hub_sets, *provenance.name_datasets(corpus)])),
            hardware=provenance.describe_hardware(),
            versions=provenance.describe_versions(),
        )
        precision = _keep_precision(output, settings, device)
        run = Run(
            teacher,
            output,
            all_data,
            sets,
            recipe,
            text_folder,
            settings,
            mlm_fraction,
            seed,
            device,
            precision,
            origin,
        )
        with explain_disk_full(output), explain_out_of_memory(memory_remedy(settings)):
            steps = _make_steps(run, tokenizer)
            log_header(_header(run, described, steps))
            scores = _train_and_score(run, steps, report_to)
            summary = summarize(run, steps, scores, parameters, model)
        write_record(output)
        write_summary(summary, output)  # before the checkpoints go, without which a kill would cost the whole run
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
        return summary


def _prepare_text(teacher: ModelFolder, output: Path, corpus: list[str], tokens: str | None) -> tuple[Recipe, Path]:
    """Return how text is read, and the folder of its tokens, which are made of `corpus` unless they are there.

    Sequences have 128 tokens, or as many as the model reads.
    """
    recipe, folder = default_recipe(teacher.positions), Path(tokens or RunFolder(output).tokens)
    if tokens:
        recipe = with_prepared_settings(recipe, folder)
    elif not is_prepared(folder, corpus, teacher.tokenizer, recipe):
        prepare_tokens(corpus, teacher.tokenizer, folder, recipe)
    check_fits_prepared_tokens(TokenDataset.open(folder, "train"), teacher)
    more = "give --corpus text of more documents, which blank lines separate, and another --output"
    open_heldout(folder, "prepare it with data.heldout_fraction above 0" if tokens else more)
    return recipe, folder


def _keep_precision(output: Path, settings: FinetuneConfig, device: torch.device) -> str:
    """Return the number format of a run, decided at its first start."""
    file = output / "settings.json"
    if not file.is_file():
        write_json(file, {"precision": resolve_precision(settings, device)})
    return json.loads(file.read_text(encoding="utf-8"))["precision"]


def _make_steps(run: Run, tokenizer: PreTrainedTokenizerFast) -> Steps:
    batch, store = run.settings.batch_size, TokenDataset.open(run.tokens, "train")
    masked = None
    if run.mlm_fraction and len(store) < batch:
        raise UserError(
            f"finetune.batch_size = {batch}: the text has only {len(store)} sequences to train masked LM on; give more "
            "text, a smaller batch, or --mlm_fraction 0"
        )
    if run.mlm_fraction:
        masked = BatchLoader(
            store,
            make_masker(store, run.recipe),
            seed=run.seed,
            global_batch_size=batch,
            micro_batch_size=batch,
            rank=0,
            world_size=1,
            by_length=store.manifest["mode"] == "lines",
        )
    train = {name: sets.train for name, sets in run.sets.items()}
    examples = {name: len(features) for name, features in train.items()}
    return Steps(
        train,
        Collator(tokenizer),
        batch=batch,
        steps=count_steps(examples, batch, run.settings.epochs, run.mlm_fraction),
        seed=run.seed,
        mlm_fraction=run.mlm_fraction,
        masked=masked,
    )


def _header(run: Run, described: str, steps: Steps) -> dict[str, str]:
    """Return the lines of the header of a run, whose model is `described`."""
    shares = ", ".join(f"{name} {count:,}" for name, count in steps.of_each.items())
    examples = ", ".join(f"{name} {len(sets.train):,}" for name, sets in run.sets.items())
    return {
        "multitask": described,
        "device": f"{describe_device(run.device, 1)}, {run.precision}",
        "data": f"training examples: {examples}",
        "steps": f"{len(steps):,} in all: {shares}",
        "output": str(run.output),
    }


def _load(run: Run) -> MultitaskModel:
    """Return the model to train; each head begins as in a run on its task alone with the same seed."""
    dropout, path = run.settings.dropout, str(run.teacher.path)
    masked_lm = restore_factors(
        load_masked_lm(run.teacher, dropout=dropout if dropout >= 0 else None), run.teacher.linear_rank
    )

    def load_tasks():
        for name, data in run.data.items():
            torch.manual_seed(run.seed)
            model = load_for_task(path, data.task, "model", tuned=False, dropout=dropout)
            set_rank(model.config, get_rank(masked_lm.config))  # of the encoder that it will share
            yield name, model

    model = MultitaskModel(masked_lm, load_tasks())
    torch.manual_seed(run.seed)
    # In bf16 on a CPU, eager attention is faster, as in a run on one task.
    if run.device.type == "cpu" and run.precision == "bf16":
        model.set_attention("eager")
    model.to_device(run.device)
    return model


def _train_and_score(run: Run, steps: Steps, report_to: Sequence[str]) -> dict[str, TaskScores]:
    """Train, write the models of the tasks and the masked-LM model, and return each task's scores."""
    model = _load(run)
    last, checkpoint = find_checkpoint(run.output)
    config = {"tasks": list(run.data), "model": run.teacher.name, "seed": run.seed} | settings_read(run.settings)
    with Trackers(report_to, RunFolder(run.output), last, config) as trackers:
        _train(run, model, steps, checkpoint, trackers)
        for name in run.data:
            save_task(run, model, name)
        scores = {name: score_task(run, name) for name in run.data}
        figures = {f"dev/{task}/{name}": value for task, score in scores.items() for name, value in score.model.items()}
        trackers.log(figures, len(steps))
        export_teacher(run, model)  # which is not there where scoring shows that the run has diverged
    return scores


def _train(run: Run, model: MultitaskModel, steps: Steps, checkpoint: str | None, trackers: Trackers) -> None:
    """Train a model in place, from a checkpoint on if there is one."""
    with progress(len(steps), "multitask", "step", mixed=True) as bar:
        trainer = MultitaskTrainer(
            model=model,
            args=make_arguments(
                run.settings,
                run.output,
                run.seed,
                bf16=run.precision == "bf16",
                cpu=run.device.type == "cpu",
                save_every=SAVE_EVERY,
                num_train_epochs=1,  # the data set has all steps
                per_device_train_batch_size=1,  # of which each is a batch
            ),
            train_dataset=steps,
            data_collator=take_batch,
            callbacks=[ProgressBar(bar), ReportCallback(trackers)],
        )
        trainer.remove_callback(PrinterCallback)  # It prints to standard output, which belongs to results.
        train(trainer, checkpoint)
